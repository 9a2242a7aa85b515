//! Counters for whoever collects them: `GET /metrics` in Prometheus' text format, where the
//! configuration has an address for it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::{Display, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::daemon::Daemon;
use crate::status::ImagesStatus;

/// Collectors come one at a time; what is beyond that waits.
const CONNECTIONS: usize = 8;
/// What a collector gets for its request and our answer. (It may come again by another connection.)
const PATIENCE: Duration = Duration::from_secs(10);
/// After a failed accept (no descriptors left, most likely) the next one is not tried at once.
const PAUSE: Duration = Duration::from_millis(100);

const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `None`: nobody is to collect.
pub(crate) async fn listen(address: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await;
    listener.map(Some).with_context(|| format!("cannot listen on {address} for metrics"))
}

/// Serves until the future is dropped.
pub(crate) async fn serve(daemon: Arc<Daemon>, listener: Option<TcpListener>) {
    let Some(listener) = listener else { return };
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let daemon = Arc::clone(&daemon);
                tokio::spawn(async move {
                    if timeout(PATIENCE, answer(&daemon, stream)).await.is_err() {
                        debug!("a collector of metrics takes its time");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a collector of metrics");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(daemon: &Daemon, stream: TcpStream) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => Response::builder()
                .header(CONTENT_TYPE, TEXT_FORMAT)
                .body(text(&Numbers::of(daemon))),
            _ => Response::builder().status(StatusCode::NOT_FOUND).body(String::new()),
        };
        async { Ok::<_, Infallible>(answer.expect("its parts are constants")) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).keep_alive(false);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "a collector of metrics has gone");
    }
}

/// What is told.
struct Numbers {
    sandboxes: usize,
    containers: usize,
    images: ImagesStatus,
}

impl Numbers {
    fn of(daemon: &Daemon) -> Self {
        Self {
            sandboxes: daemon.sandboxes.all().len(),
            containers: daemon.containers.all().len(),
            images: ImagesStatus::of(&daemon.node.images),
        }
    }
}

fn text(numbers: &Numbers) -> String {
    let Numbers { sandboxes, containers, images } = numbers;
    let counts = &images.counts;
    let mut text = Text::default();
    text.gauge("cria_pod_sandboxes", "Pod sandboxes that are listed.");
    text.value("cria_pod_sandboxes", sandboxes);
    text.gauge("cria_containers", "Containers that are listed.");
    text.value("cria_containers", containers);
    text.gauge("cria_image_store_bytes", "Bytes of the images that are held.");
    text.value("cria_image_store_bytes", images.bytes);
    text.gauge("cria_image_store_inodes", "Files and folders of the images that are held.");
    text.value("cria_image_store_inodes", images.inodes);

    text.counter("cria_image_pulls_total", "Pulls that have ended since the start.");
    for (result, count) in
        [("succeeded", counts.succeeded), ("failed", counts.failed), ("given_up", counts.given_up)]
    {
        text.labelled("cria_image_pulls_total", ("result", result), count);
    }
    text.counter("cria_image_layers_total", "Layers that pulls needed.");
    for (source, count) in [("fetched", counts.layers_fetched), ("held", counts.layers_held)] {
        text.labelled("cria_image_layers_total", ("source", source), count);
    }
    text.counter("cria_image_received_bytes_total", "Bytes of blobs received from registries.");
    text.value("cria_image_received_bytes_total", counts.bytes_received);
    text.counter("cria_image_downloads_resumed_total", "Downloads that were cut and continued.");
    text.value("cria_image_downloads_resumed_total", counts.downloads_resumed);

    // Pulls of one image by several callers get on together.
    let pulls: BTreeMap<_, _> = images.pulls.iter().map(|pull| (&pull.image, pull)).collect();
    text.gauge("cria_image_pull_bytes", "Bytes of the layers of a pull under way.");
    for (image, pull) in &pulls {
        text.labelled("cria_image_pull_bytes", ("image", image), pull.bytes);
    }
    text.gauge("cria_image_pull_here_bytes", "Of them, those that need not be fetched any more.");
    for (image, pull) in &pulls {
        text.labelled("cria_image_pull_here_bytes", ("image", image), pull.bytes_here);
    }
    text.0
}

/// Lines of the text format.
#[derive(Default)]
struct Text(String);

impl Text {
    fn gauge(&mut self, name: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} gauge"));
    }

    fn counter(&mut self, name: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} counter"));
    }

    fn value(&mut self, name: &str, value: impl Display) {
        self.line(format_args!("{name} {value}"));
    }

    fn labelled(&mut self, name: &str, (label, of): (&str, &str), value: impl Display) {
        let of = of.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
        self.line(format_args!("{name}{{{label}=\"{of}\"}} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a string takes everything");
    }
}

#[cfg(test)]
mod tests {
    use cria_images::{PullCounts, PullProgress};

    use super::*;

    #[test]
    fn every_number_has_a_line_and_every_name_a_help_and_a_type() {
        let pull = PullProgress {
            image: "a.example/\"b\":1".to_owned(),
            elapsed_seconds: 3,
            layers: 2,
            layers_here: 1,
            bytes: 1000,
            bytes_here: 600,
        };
        let counts = PullCounts {
            succeeded: 1,
            failed: 2,
            given_up: 3,
            layers_fetched: 4,
            layers_held: 5,
            bytes_received: 6,
            downloads_resumed: 7,
        };
        let images = ImagesStatus { bytes: 8, inodes: 9, pulls: vec![pull.clone(), pull], counts };
        let text = text(&Numbers { sandboxes: 10, containers: 11, images });
        for line in [
            "cria_pod_sandboxes 10",
            "cria_containers 11",
            "cria_image_store_bytes 8",
            "cria_image_store_inodes 9",
            "cria_image_pulls_total{result=\"succeeded\"} 1",
            "cria_image_pulls_total{result=\"failed\"} 2",
            "cria_image_pulls_total{result=\"given_up\"} 3",
            "cria_image_layers_total{source=\"fetched\"} 4",
            "cria_image_layers_total{source=\"held\"} 5",
            "cria_image_received_bytes_total 6",
            "cria_image_downloads_resumed_total 7",
            r#"cria_image_pull_bytes{image="a.example/\"b\":1"} 1000"#,
            r#"cria_image_pull_here_bytes{image="a.example/\"b\":1"} 600"#,
        ] {
            assert_eq!(text.lines().filter(|found| *found == line).count(), 1, "{line}\n{text}");
            let name = line.split(['{', ' ']).next().unwrap();
            for about in ["HELP", "TYPE"] {
                assert_eq!(text.matches(&format!("# {about} {name} ")).count(), 1, "{name}");
            }
        }
        assert!(text.ends_with('\n'));
    }
}
