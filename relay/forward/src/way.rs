//! The way to a port of the workspace, as the listeners see it. The tunnel is one; a test has
//! another that leads to this machine.

use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use bytes::Bytes;
use relay_engine::{Moved, Side};
use relay_tunnel::endpoint::EarlyData;
use relay_tunnel::stack::Stream;
use relay_wire::same_host::To;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::same_host::Handed;

/// Leads to ports of the workspace.
pub(crate) trait Way: Clone + Send + Sync + 'static {
    type Flow: Flow;

    /// Connects to a TCP port. Bounded in time. As many of the bytes in `first` as it says went
    /// with the request.
    fn connect(
        &self,
        port: u16,
        first: &[u8],
    ) -> impl Future<Output = io::Result<(TcpStream, usize)>> + Send;

    /// The same for a stream that is only carried.
    fn open(
        &self,
        port: u16,
        first: &[u8],
    ) -> impl Future<Output = io::Result<(Stream, usize)>> + Send {
        async move {
            let (stream, taken) = self.connect(port, first).await?;
            Ok((Stream::Kernel(stream), taken))
        }
    }

    /// Hands a connection over to the other end, unread, when that is on this machine; `moved` counts
    /// what comes from the socket as of that side. Nothing when that is not the way.
    fn hand_over(
        &self,
        to: To,
        socket: BorrowedFd<'_>,
        moved: (&Moved, Side),
    ) -> impl Future<Output = Option<io::Result<Handed>>> + Send {
        let _ = (to, socket, moved);
        std::future::ready(None)
    }

    /// Whether it pays to wait for a stream's first bytes before connecting.
    fn early_data(&self) -> Option<EarlyData>;

    /// Opens a flow of datagrams to a UDP port; fails while there is no agent.
    fn open_flow(&self, port: u16) -> io::Result<Self::Flow>;
}

/// Datagrams to one UDP port of the workspace, and those that come back.
pub(crate) trait Flow: Send + Sync + 'static {
    fn send(&self, payload: Bytes) -> impl Future<Output = io::Result<()>> + Send;

    /// Appends datagrams that came back, `limit` at most, and returns how many: none when the flow is
    /// over.
    fn receive(
        &mut self,
        datagrams: &mut Vec<Bytes>,
        limit: usize,
    ) -> impl Future<Output = usize> + Send;
}

/// Where connections go now. Changes when the agent goes, comes back, or is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target<A> {
    pub(crate) address: A,
    /// Counts up whenever the other side's process is a new one.
    pub(crate) generation: u64,
    /// The control plane sees the agent. It may be reachable even when not.
    pub(crate) present: bool,
}

/// Dials the current target, anew whenever the target changes, for `limit` at most.
pub(crate) async fn dial<A: Clone, T, F>(
    mut target: watch::Receiver<Option<Target<A>>>,
    limit: Duration,
    connect: impl Fn(A) -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let attempt = async {
        loop {
            let current = target.borrow_and_update().clone();
            if let Some(Target {
                address, present, ..
            }) = current
            {
                tokio::select! {
                    result = connect(address) => match result {
                        Err(error) if !present && error.kind() != io::ErrorKind::ConnectionRefused => {}
                        result => return result,
                    },
                    changed = target.changed() => {
                        changed.map_err(|_| closed())?;
                        continue;
                    }
                }
            }
            target.changed().await.map_err(|_| closed())?;
        }
    };
    match tokio::time::timeout(limit, attempt).await {
        Ok(result) => result,
        Err(_) => Err(no_answer(limit)),
    }
}

/// Dials the current target and no other one, for `limit` at most: what is sent with the request
/// may have been acted upon although no answer came, and must not be sent again.
pub(crate) async fn dial_once<A: Clone, T, F>(
    mut target: watch::Receiver<Option<Target<A>>>,
    limit: Duration,
    connect: impl FnOnce(A) -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let current = target.borrow_and_update().clone();
    let Some(Target {
        address,
        generation,
        ..
    }) = current
    else {
        return Err(io::ErrorKind::NotConnected.into());
    };
    let another = |now: &Option<Target<A>>| {
        now.as_ref()
            .is_none_or(|target| target.generation != generation)
    };
    tokio::select! {
        result = connect(address) => result,
        _ = target.wait_for(another) => Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "the agent went away while the connection was made",
        )),
        () = tokio::time::sleep(limit) => Err(no_answer(limit)),
    }
}

fn no_answer(limit: Duration) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no answer within {} seconds", limit.as_secs_f32()),
    )
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the tunnel was closed")
}

/// An I/O error without the number of the operating system.
pub(crate) fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::AddrInUse => "address already in use".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => {
            let text = error.to_string();
            match text.find(" (os error") {
                Some(end) => text[..end].to_lowercase(),
                None => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(15);
    const SHORT: Duration = Duration::from_millis(50);

    fn at(address: u8, generation: u64) -> Option<Target<u8>> {
        Some(Target {
            address,
            generation,
            present: true,
        })
    }

    #[tokio::test]
    async fn a_dial_waits_for_the_agent_and_goes_to_it() {
        let (set, target) = watch::channel(None);
        let dialing = tokio::spawn(dial(target, LIMIT, |address| async move { Ok(address) }));
        tokio::time::sleep(Duration::from_millis(30)).await;
        set.send_replace(at(7, 1));
        assert_eq!(dialing.await.unwrap().unwrap(), 7);
    }

    #[tokio::test]
    async fn a_dial_to_a_dead_agent_starts_anew_with_the_next_one() {
        let (set, target) = watch::channel(at(1, 1));
        let connect = |address| async move {
            if address == 1 {
                std::future::pending::<()>().await;
            }
            Ok(address)
        };
        let dialing = tokio::spawn(dial(target, LIMIT, connect));
        tokio::time::sleep(Duration::from_millis(30)).await;
        set.send_replace(at(2, 2));
        assert_eq!(dialing.await.unwrap().unwrap(), 2);
    }

    #[tokio::test]
    async fn a_dial_that_carries_data_is_not_made_twice() {
        let (set, target) = watch::channel(at(1, 1));
        let dialing = tokio::spawn(dial_once(target, LIMIT, |_| {
            std::future::pending::<io::Result<()>>()
        }));
        let doubted = at(1, 1).map(|target| Target {
            present: false,
            ..target
        });
        set.send_replace(doubted);
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(!dialing.is_finished());
        set.send_replace(at(2, 2));
        let error = dialing.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn a_dial_gives_up_after_its_limit() {
        let (_set, target) = watch::channel(at(1, 1));
        let result = dial(target, SHORT, |_| std::future::pending::<io::Result<()>>()).await;
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "no answer within 0.05 seconds");
    }

    #[tokio::test]
    async fn refusal_is_final_even_while_the_agent_is_lost() {
        let lost = Target {
            address: 1,
            generation: 1,
            present: false,
        };
        let (_set, target) = watch::channel(Some(lost));
        let refuse = |_| async { Err::<(), _>(io::ErrorKind::ConnectionRefused.into()) };
        let error = dial(target, LIMIT, refuse).await.unwrap_err();
        assert_eq!(reason(&error), "connection refused");
    }
}
