//! Threads of their own for the traffic of apps. Each has a runtime that carries browsers'
//! connections to apps, and the first one the server's end of tunnels as well: what a request needs
//! on its way is woken on one thread, instead of being passed from one to the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;

use crate::error::{Error, Result};

/// The running threads; they end when this is dropped.
pub(crate) struct Threads {
    lanes: Lanes,
    _stop: watch::Sender<()>,
}

impl Threads {
    /// Starts one thread for each two processors: the agents, the apps and the rest of the server
    /// have the others.
    pub(crate) fn start() -> Result<Self> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let (stop, stopping) = watch::channel(());
        let lanes = (0..processors.div_ceil(2)).map(|number| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (handle, stopping) = (runtime.handle().clone(), stopping.clone());
            thread::Builder::new()
                .name(format!("apps-{number}"))
                .spawn(move || run(runtime, stopping))?;
            Ok(handle)
        });
        let lanes: std::io::Result<Arc<[Handle]>> = lanes.collect();
        let lanes = Lanes {
            lanes: lanes.map_err(Error::Threads)?,
            next: Arc::default(),
        };
        Ok(Self { lanes, _stop: stop })
    }

    /// The way to the threads.
    pub(crate) fn lanes(&self) -> &Lanes {
        &self.lanes
    }
}

fn run(runtime: Runtime, mut stopping: watch::Receiver<()>) {
    // An error says that the sender is gone.
    let _ = runtime.block_on(stopping.changed());
    runtime.shutdown_background();
}

/// Where work for the threads is handed over.
#[derive(Clone)]
pub(crate) struct Lanes {
    lanes: Arc<[Handle]>,
    next: Arc<AtomicUsize>,
}

impl Lanes {
    /// The thread of the tunnels.
    pub(crate) fn first(&self) -> &Handle {
        &self.lanes[0]
    }

    /// The thread for the next connection.
    pub(crate) fn next(&self) -> Handle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lanes[number % self.lanes.len()].clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_spread_over_threads_that_end_with_their_owner() {
        let threads = Threads::start().unwrap();
        let lanes = threads.lanes().clone();
        let name = |lane: &Handle| {
            let (sender, receiver) = std::sync::mpsc::channel();
            lane.spawn(async move { sender.send(thread::current().name().map(str::to_owned)) });
            receiver.recv().ok().flatten()
        };
        assert_eq!(name(lanes.first()).as_deref(), Some("apps-0"));
        for number in 0..lanes.lanes.len() {
            let expected = format!("apps-{number}");
            assert_eq!(name(&lanes.next()), Some(expected));
        }
        drop(threads);
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while name(lanes.first()).is_some() {
            assert!(std::time::Instant::now() < patience, "it runs on");
        }
    }
}
