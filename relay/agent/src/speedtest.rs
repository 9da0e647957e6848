//! The agent's end of a speed test, on a port of the tunnel that is never an app's (coder_wire §10.3).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rand::RngCore;
use relay_wire::speedtest::{BLOCK, Direction, MAX_LINE, Request, answer_line};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

pub(crate) use relay_wire::speedtest::PORT;

/// Tests at a time; more would measure each other.
const AT_A_TIME: usize = 8;
/// How long the request may take.
const HEAD: Duration = Duration::from_secs(10);
/// The longest test.
const LONGEST: Duration = Duration::from_secs(3600);
/// How much longer than its time a test may take to end.
const LATE: Duration = Duration::from_secs(5);
/// Bytes written and read at once.
const PIECE: usize = 256 << 10;

/// Serves speed tests.
#[derive(Clone, Debug)]
pub(crate) struct SpeedTests(Arc<Semaphore>);

impl Default for SpeedTests {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_A_TIME)))
    }
}

impl SpeedTests {
    /// Serves one connection to its end.
    pub(crate) async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let ended = match self.0.try_acquire() {
            Ok(_place) => test(&mut stream).await,
            Err(_) => refuse(&mut stream, "too many speed tests at a time; try later").await,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a speed test ended early");
        }
    }
}

async fn refuse(stream: &mut (impl AsyncWrite + Unpin), why: &str) -> io::Result<()> {
    stream.write_all(&answer_line(Some(why))).await?;
    stream.shutdown().await
}

async fn test(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let line = timeout(HEAD, first_line(stream)).await??;
    let request = match Request::parse(&line) {
        Ok(request) if request.time > LONGEST => {
            return refuse(stream, "a speed test takes an hour at most").await;
        }
        Ok(request) => request,
        Err(error) => return refuse(stream, &error.to_string()).await,
    };
    stream.write_all(&answer_line(None)).await?;
    let limit = request.time + LATE;
    match request.direction {
        Direction::Down => timeout(limit, send(stream, request.time)).await?,
        Direction::Up => timeout(limit, take(stream)).await?,
    }
}

/// Reads to the first line's end, and nothing behind it.
async fn first_line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while line.len() <= MAX_LINE {
        match stream.read_u8().await? {
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    Ok(line)
}

/// Sends whole blocks until the time is over.
async fn send(stream: &mut (impl AsyncWrite + Unpin), time: Duration) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    // Nothing on the way may make less of it.
    rand::rng().fill_bytes(&mut piece);
    let start = Instant::now();
    while start.elapsed() < time {
        for _ in 0..BLOCK / PIECE {
            stream.write_all(&piece).await?;
        }
    }
    stream.shutdown().await
}

/// Takes what comes until the peer is done.
async fn take(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    while stream.read(&mut piece).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use relay_wire::speedtest::parse_answer;
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    fn served(tests: &SpeedTests) -> DuplexStream {
        let (client, agent) = duplex(PIECE);
        let tests = tests.clone();
        tokio::spawn(async move { tests.serve(agent).await });
        client
    }

    async fn ask(stream: &mut DuplexStream, line: &[u8]) -> Result<(), String> {
        stream.write_all(line).await.unwrap();
        let answer = first_line(stream).await.unwrap();
        parse_answer(&answer).unwrap()
    }

    fn request(direction: Direction) -> Vec<u8> {
        let time = Duration::from_millis(50);
        Request { time, direction }.line()
    }

    #[tokio::test]
    async fn a_download_is_whole_blocks_and_ends() {
        let mut client = served(&SpeedTests::default());
        assert_eq!(ask(&mut client, &request(Direction::Down)).await, Ok(()));
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert!(!got.is_empty() && got.len() % BLOCK == 0, "{}", got.len());
    }

    #[tokio::test]
    async fn an_upload_is_taken_to_its_end() {
        let mut client = served(&SpeedTests::default());
        assert_eq!(ask(&mut client, &request(Direction::Up)).await, Ok(()));
        client.write_all(&vec![7; BLOCK]).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn nonsense_and_one_too_many_are_told_why() {
        let tests = SpeedTests::default();
        let lines = [
            &b"GET / HTTP/1.1\r\n"[..],
            b"{\"version\":1,\"time\":1,\"direction\":0}\n",
            b"{\"version\":2,\"time\":4000000000000000,\"direction\":0}\n",
        ];
        for line in lines {
            assert!(ask(&mut served(&tests), line).await.is_err(), "{line:?}");
        }
        let mut open = Vec::new();
        for _ in 0..AT_A_TIME {
            let mut client = served(&tests);
            assert_eq!(ask(&mut client, &request(Direction::Up)).await, Ok(()));
            open.push(client);
        }
        let refused = ask(&mut served(&tests), &request(Direction::Up)).await;
        assert!(refused.unwrap_err().contains("try later"));
    }
}
