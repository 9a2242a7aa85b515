//! The daemon's log on stderr: its form for good, its level until the next reload.

use std::io::{self, IsTerminal as _};

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry};

use crate::config::{LogFormat, LogLevel};

/// Changes the level while the daemon runs.
pub(crate) struct LevelSwitch(reload::Handle<Targets, Registry>);

impl LevelSwitch {
    pub(crate) fn set(&self, level: LogLevel) {
        self.0.reload(filter(level)).expect("the log lives as long as the process");
    }
}

pub(crate) fn start(level: LogLevel, format: LogFormat) -> LevelSwitch {
    let (filter, switch) = reload::Layer::new(filter(level));
    let registry = Registry::default();
    match format {
        LogFormat::Text => registry.with(text_layer().with_filter(filter)).init(),
        LogFormat::Json => {
            let json = layer().json().flatten_event(true).with_writer(io::stderr);
            registry.with(json.with_filter(filter)).init();
        }
    }
    LevelSwitch(switch)
}

fn text_layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr)
}

/// The libraries below us speak only to warn, unless everything is asked for.
fn filter(level: LogLevel) -> Targets {
    let (ours, theirs) = match level {
        LogLevel::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
        LogLevel::Warn => (LevelFilter::WARN, LevelFilter::WARN),
        LogLevel::Info => (LevelFilter::INFO, LevelFilter::WARN),
        LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::WARN),
        LogLevel::Trace => (LevelFilter::TRACE, LevelFilter::TRACE),
    };
    // A prefix: the daemon and its libraries are `cria` and `cria_...`.
    Targets::new().with_target("cria", ours).with_default(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_messages_are_filtered_apart_from_those_of_libraries() {
        use tracing::Level;
        for (level, target, message, shown) in [
            (LogLevel::Info, "cria::daemon", Level::INFO, true),
            (LogLevel::Info, "cria::daemon", Level::DEBUG, false),
            (LogLevel::Debug, "cria_images::pull", Level::DEBUG, true),
            (LogLevel::Debug, "h2::codec", Level::INFO, false),
            (LogLevel::Info, "h2::codec", Level::WARN, true),
            (LogLevel::Error, "h2::codec", Level::WARN, false),
            (LogLevel::Trace, "h2::codec", Level::TRACE, true),
        ] {
            let found = filter(level).would_enable(target, &message);
            assert_eq!(found, shown, "{level} {target} {message}");
        }
    }
}
