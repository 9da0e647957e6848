//! Standard input and output, joined to a stream.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::pin;

use relay_engine::abort;
use rustix::fs::FileType;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::unix::pipe::{self, OpenOptions};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;

use super::Exit;
use crate::Error;
use crate::way::reason;

/// Most that is moved at once, and what a pipe should hold.
const BUFFER: usize = 256 << 10;

/// Joins standard input and output to a stream, until the stream is at its end or nobody reads
/// standard output any more. The end of standard input is passed on, and ends nothing by itself.
pub(super) async fn join(stream: TcpStream) -> Result<Exit, Error> {
    let input = input().map_err(|error| broken("standard input", &error))?;
    let output = output().map_err(|error| broken("standard output", &error))?;
    run(stream, input, output).await
}

/// Does the work of [`join`].
pub(super) async fn run(
    mut stream: TcpStream,
    input: Input,
    output: Output,
) -> Result<Exit, Error> {
    // Keystrokes must not wait for one another.
    let _ = stream.set_nodelay(true);
    let result = {
        let (from, to) = stream.split();
        let mut up = pin!(up(input, to));
        let mut down = pin!(down(from, &output));
        tokio::select! {
            biased;
            () = output.gone() => Ok(Exit::OutputClosed),
            result = &mut down => result,
            // What the server still has to say comes all the same.
            () = &mut up => tokio::select! {
                biased;
                () = output.gone() => Ok(Exit::OutputClosed),
                result = down => result,
            },
        }
    };
    match (&result, output) {
        (Ok(Exit::OutputClosed), _) => abort(stream),
        (Ok(_), Output::Thread { socket, done }) => {
            drop(socket);
            // Its end is enough, whichever it was.
            let _ = done.await;
        }
        _ => {}
    }
    result
}

/// From here to the server. When the server takes nothing more, it says so in the other direction.
async fn up(mut input: Input, mut to: WriteHalf<'_>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        match input.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => {
                if to.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
    let _ = to.shutdown().await;
}

/// From the server to here.
async fn down(mut from: ReadHalf<'_>, output: &Output) -> Result<Exit, Error> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await;
        let read = read.map_err(|error| Error::SshLost(reason(&error)))?;
        if read == 0 {
            return Ok(Exit::Status(0));
        }
        match output.write_all(&buffer[..read]).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Exit::OutputClosed),
            Err(error) => return Err(broken("standard output", &error)),
        }
    }
}

fn broken(what: &'static str, error: &io::Error) -> Error {
    Error::Standard {
        what,
        reason: reason(error),
    }
}

/// Where bytes from this machine come from.
pub(super) type Input = Box<dyn AsyncRead + Send + Unpin>;

/// Where bytes to this machine go.
pub(super) enum Output {
    /// Written to without a detour.
    Pipe(pipe::Sender),
    /// Anything else: a thread writes what comes through the socket, and tells when it has.
    Thread {
        /// Leads to the thread.
        socket: UnixStream,
        /// Dropped when all is written, or nothing more can be.
        done: oneshot::Receiver<()>,
    },
}

impl Output {
    /// Ends when nobody will read any more, as soon as that can be told.
    async fn gone(&self) {
        match self {
            Self::Pipe(pipe) => drop(pipe.ready(Interest::ERROR).await),
            Self::Thread { .. } => std::future::pending().await,
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self {
                Self::Pipe(pipe) => {
                    pipe.writable().await?;
                    pipe.try_write(bytes)
                }
                Self::Thread { socket, .. } => {
                    socket.writable().await?;
                    socket.try_write(bytes)
                }
            };
            match written {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Standard input. A pipe is opened anew, so that it can be made non-blocking for this process
/// alone: whoever else has the descriptor knows nothing of it.
fn input() -> io::Result<Input> {
    let fd = io::stdin();
    if is_pipe(fd.as_fd())
        && let Ok(pipe) = OpenOptions::new().open_receiver("/proc/self/fd/0")
    {
        enlarge(pipe.as_fd());
        return Ok(Box::new(pipe));
    }
    let mut file = File::from(fd.as_fd().try_clone_to_owned()?);
    let (socket, mut ours) = pair()?;
    std::thread::Builder::new()
        .name("stdin".to_owned())
        // Ends with the process at the latest: a read of a terminal cannot be called off.
        .spawn(move || io::copy(&mut file, &mut ours))?;
    Ok(Box::new(socket))
}

fn output() -> io::Result<Output> {
    let fd = io::stdout();
    if is_pipe(fd.as_fd())
        && let Ok(pipe) = OpenOptions::new().open_sender("/proc/self/fd/1")
    {
        enlarge(pipe.as_fd());
        return Ok(Output::Pipe(pipe));
    }
    written_by_thread(File::from(fd.as_fd().try_clone_to_owned()?))
}

/// An output that is no pipe.
pub(super) fn written_by_thread(mut file: File) -> io::Result<Output> {
    let (socket, mut ours) = pair()?;
    let (tell, done) = oneshot::channel();
    std::thread::Builder::new()
        .name("stdout".to_owned())
        .spawn(move || {
            let _tell = tell;
            io::copy(&mut ours, &mut file)
        })?;
    Ok(Output::Thread { socket, done })
}

/// Two ends, one for the runtime and one for a thread.
fn pair() -> io::Result<(UnixStream, StdUnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs))
}

fn is_pipe(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}

/// Asks for a larger pipe, which saves wake-ups; there is a limit for each user.
fn enlarge(pipe: BorrowedFd<'_>) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, BUFFER);
}
