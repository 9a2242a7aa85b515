//! One-time tokens: an RPC leaves what is to be done, and a client that shows the token takes it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::net::TcpStream;

use crate::process::Process;

/// As the kubelet and crictl expect it: they come at once.
const LIFE: Duration = Duration::from_secs(60);
const MOST: usize = 1000;
/// Eight characters.
const TOKEN_BYTES: usize = 6;

/// What a client may come for.
pub enum Pending {
    Exec(Command),
    Attach(Command),
    PortForward(PortForward),
}

/// A process to talk to, and on which streams.
pub struct Command {
    pub wanted: Wanted,
    pub start: Start,
}

/// A pod to connect to.
pub struct PortForward {
    /// Those that were named beforehand: only the old form over WebSocket needs to know.
    pub ports: Vec<NonZeroU16>,
    pub connect: Connect,
}

/// Starts, or finds, the process once the client is there; the error is for people.
pub type Start = Box<dyn FnOnce() -> BoxFuture<'static, Result<Process, String>> + Send>;

/// Connects to a port in a pod; the error is for people.
pub type Connect = Arc<dyn Fn(u16) -> BoxFuture<'static, Result<TcpStream, String>> + Send + Sync>;

/// The streams that were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// Too many tokens wait for their clients.
#[derive(Debug, thiserror::Error)]
#[error("too many streaming sessions wait for their clients; try again in a minute")]
pub struct TooMany;

pub(crate) struct Tokens<T> {
    waiting: HashMap<String, T>,
    /// In the order in which they expire; some of them used by now.
    expiring: VecDeque<(Instant, String)>,
}

impl<T> Tokens<T> {
    pub(crate) fn new() -> Self {
        Self { waiting: HashMap::new(), expiring: VecDeque::new() }
    }

    pub(crate) fn insert(&mut self, what: T, now: Instant) -> Result<String, TooMany> {
        self.expire(now);
        if self.waiting.len() >= MOST {
            return Err(TooMany);
        }
        let token = loop {
            let token = random_token();
            if !self.waiting.contains_key(&token) {
                break token;
            }
        };
        self.waiting.insert(token.clone(), what);
        self.expiring.push_back((now + LIFE, token.clone()));
        Ok(token)
    }

    /// Once, and not after its time.
    pub(crate) fn take(&mut self, token: &str, now: Instant) -> Option<T> {
        self.expire(now);
        self.waiting.remove(token)
    }

    /// Also forgets the order of those that were used.
    fn expire(&mut self, now: Instant) {
        while let Some((expires, token)) = self.expiring.front() {
            if *expires > now && self.waiting.contains_key(token) {
                break;
            }
            self.waiting.remove(token);
            self.expiring.pop_front();
        }
    }
}

impl<T> fmt::Debug for Tokens<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tokens").field("waiting", &self.waiting.len()).finish()
    }
}

fn random_token() -> String {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom(&mut bytes, GetRandomFlags::empty())
        .expect("the kernel's generator is seeded long before a daemon starts");
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_eight_characters_and_serves_once() {
        let (mut tokens, now) = (Tokens::new(), Instant::now());
        let token = tokens.insert("a", now).unwrap();
        assert_eq!(token.len(), 8);
        assert_eq!(tokens.take("AAAAAAA", now), None);
        assert_eq!(tokens.take(&token, now), Some("a"));
        assert_eq!(tokens.take(&token, now), None);
    }

    #[test]
    fn a_token_serves_for_a_minute() {
        let (mut tokens, now) = (Tokens::new(), Instant::now());
        let first = tokens.insert(1, now).unwrap();
        let second = tokens.insert(2, now).unwrap();
        assert_eq!(tokens.take(&first, now + LIFE - Duration::from_millis(1)), Some(1));
        assert_eq!(tokens.take(&second, now + LIFE), None);
    }

    #[test]
    fn a_thousand_may_wait_and_used_or_expired_ones_make_room() {
        let (mut tokens, now) = (Tokens::new(), Instant::now());
        let all: Vec<_> = (0..MOST).map(|n| tokens.insert(n, now).unwrap()).collect();
        tokens.insert(0, now).unwrap_err();
        tokens.take(&all[500], now).unwrap();
        tokens.insert(0, now).unwrap();
        tokens.insert(0, now).unwrap_err();
        tokens.insert(0, now + LIFE).unwrap();
        assert_eq!((tokens.waiting.len(), tokens.expiring.len()), (1, 1));
    }

    #[test]
    fn tokens_that_are_used_leave_nothing() {
        let (mut tokens, now) = (Tokens::new(), Instant::now());
        for n in 0..10 * MOST {
            let token = tokens.insert(n, now).unwrap();
            tokens.take(&token, now).unwrap();
        }
        assert!(tokens.waiting.is_empty() && tokens.expiring.len() <= 1);
    }
}
