//! The one async runtime under the harness, whose own interface blocks.

use std::future::Future;
use std::sync::LazyLock;
use std::thread;

use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("harness")
        .enable_all()
        .build()
        .expect("a test may start threads")
});

/// Runs `future` to its end. Many threads may do so at once.
pub fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(future)
}

/// The runtime, for a test that needs a task in the background.
pub fn runtime() -> &'static Runtime {
    &RUNTIME
}

/// Runs `work` on a thread of its own: a drop may happen inside another runtime, where blocking
/// is a panic.
pub(crate) fn elsewhere<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| scope.spawn(work).join().ok())
}
