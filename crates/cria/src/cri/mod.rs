//! The CRI: the only code that knows tonic and the generated messages.
//!
//! `service` has one line per RPC; behind it stand a file per verb that changes something, and one
//! per noun for the rest. `convert` translates, purely. `ask` is a client, for `cria status`.

mod ask;
mod container;
mod convert;
mod image;
mod sandbox;
mod server;
mod service;
mod span;
mod stats;
mod status;
mod streaming;

pub(crate) use ask::ask_status;
pub(crate) use server::serve;

use std::pin::Pin;

use futures_util::stream::{self, Stream};
use tonic::Status;

/// The answer of a `Stream*` list.
type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How many items go into one message of a `Stream*` list: far below gRPC's limit of 16 MiB, even
/// where every item is full of labels.
const ITEMS_PER_MESSAGE: usize = 500;

/// Cuts a list into messages, of one item or more each.
fn stream_list<T, M: Send + 'static>(items: Vec<T>, message: impl Fn(Vec<T>) -> M) -> Items<M> {
    let mut items = items.into_iter().peekable();
    let mut messages = Vec::new();
    while items.peek().is_some() {
        messages.push(Ok(message(items.by_ref().take(ITEMS_PER_MESSAGE).collect())));
    }
    Box::pin(stream::iter(messages))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_streamed_list_holds_every_item_once_and_no_empty_message() {
        for (count, expected) in [(0, vec![]), (1, vec![1]), (500, vec![500]), (501, vec![500, 1])]
        {
            let messages = stream_list((0..count).collect::<Vec<_>>(), |items| items);
            let messages: Vec<Vec<usize>> =
                messages.map(|message| message.expect("no error")).collect().await;
            assert_eq!(messages.iter().map(Vec::len).collect::<Vec<_>>(), expected, "{count}");
            assert!(messages.concat().into_iter().eq(0..count), "{count}");
        }
    }
}
