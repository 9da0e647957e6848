//! The `sftp` subsystem: version 3 of the protocol (draft-ietf-secsh-filexfer-02) with OpenSSH's
//! extensions (its PROTOCOL §4), over the files that the agent's user can reach.

mod answer;
mod attributes;
mod extended;
mod listing;
mod packet;
mod paths;

use std::io;
use std::path::PathBuf;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};

use answer::Files;
use packet::LONGEST;

/// Answers are sent when there is so much of them, bytes.
const ANSWERS: usize = 512 << 10;
/// No more questions are taken in while so much of them waits, bytes.
const QUESTIONS: usize = 1 << 20;

/// Serves a client until it has no more to ask; relative paths begin at `home`.
///
/// # Errors
/// When the client breaks the protocol, or the channel is closed.
pub(super) async fn serve(
    mut input: impl AsyncBufRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
    home: PathBuf,
) -> io::Result<()> {
    let mut work = Work {
        files: Files::new(home),
        questions: Vec::new(),
        answers: Vec::new(),
    };
    loop {
        while !work.has_question()? {
            let bytes = input.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(());
            }
            let count = bytes.len().min(QUESTIONS);
            work.questions.extend_from_slice(&bytes[..count]);
            input.consume(count);
        }
        // Files are read and written where that may block, many questions at a time.
        work = tokio::task::spawn_blocking(move || work.answer()).await??;
        output.write_all(&work.answers).await?;
        work.answers.clear();
    }
}

/// What moves between the channel and the thread that may block.
struct Work {
    files: Files,
    questions: Vec<u8>,
    answers: Vec<u8>,
}

impl Work {
    fn has_question(&self) -> io::Result<bool> {
        Ok(first(&self.questions)?.is_some())
    }

    /// Answers what is there, up to a part that can be sent.
    fn answer(mut self) -> io::Result<Self> {
        let mut at = 0;
        while let Some(packet) = first(&self.questions[at..])? {
            self.files.answer(packet, &mut self.answers);
            at += 4 + packet.len();
            if self.answers.len() >= ANSWERS {
                break;
            }
        }
        self.questions.drain(..at);
        Ok(self)
    }
}

/// The first packet, without its length, if it is there.
fn first(bytes: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if !(1..=LONGEST).contains(&length) {
        return Err(io::Error::other(
            "a packet of SFTP has a length that none has",
        ));
    }
    Ok(rest.get(..length))
}

#[cfg(test)]
mod tests;
