//! Questions that OpenSSH's programs do not ask, or not in this way.

use std::path::Path;

use super::answer::Files;
use super::packet::{self, MOST_DATA};
use super::{first, serve};
use crate::ssh::proto::codec::{Put, Reader};

struct Client {
    files: Files,
}

/// Kind of the answer, and what is behind its number.
type Answer = (u8, Vec<u8>);

impl Client {
    fn new(home: &Path) -> Self {
        Self {
            files: Files::new(home.to_owned()),
        }
    }

    fn ask(&mut self, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) -> Answer {
        let mut question = vec![kind];
        question.put_u32(77);
        fill(&mut question);
        let mut out = Vec::new();
        self.files.answer(&question, &mut out);
        let answer = first(&out).unwrap().unwrap();
        assert_eq!(answer.len() + 4, out.len(), "one answer");
        assert_eq!(answer[1..5], 77_u32.to_be_bytes());
        (answer[0], answer[5..].to_vec())
    }

    fn status(&mut self, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) -> u32 {
        let (kind, rest) = self.ask(kind, fill);
        assert_eq!(kind, packet::STATUS);
        Reader::new(&rest).u32().unwrap()
    }

    fn open(&mut self, path: &str, flags: u32) -> Vec<u8> {
        let (kind, rest) = self.ask(packet::OPEN, |out| {
            out.put_string(path).put_u32(flags).put_u32(0);
        });
        assert_eq!(kind, packet::HANDLE, "{rest:?}");
        rest[4..].to_vec()
    }
}

const READ: u32 = 1;
const WRITE: u32 = 2;
const APPEND: u32 = 4;
const CREATE: u32 = 8;
const EXCLUSIVE: u32 = 0x20;

#[test]
fn files_are_written_anywhere_and_read_to_their_end() {
    let home = tempfile::tempdir().unwrap();
    let mut client = Client::new(home.path());
    let handle = client.open("file", READ | WRITE | CREATE);
    for (offset, text) in [(5, "world"), (0, "hello")] {
        let status = client.status(packet::WRITE, |out| {
            out.put_string(&handle).put_u64(offset).put_string(text);
        });
        assert_eq!(status, 0);
    }
    let read = |offset: u64, length: u32| {
        let handle = handle.clone();
        move |out: &mut Vec<u8>| {
            out.put_string(&handle).put_u64(offset).put_u32(length);
        }
    };
    let (kind, rest) = client.ask(packet::READ, read(3, u32::MAX));
    assert_eq!((kind, &rest[4..]), (packet::DATA, &b"loworld"[..]));
    assert_eq!(client.status(packet::READ, read(10, 5)), 1);
    assert_eq!(
        client.status(packet::CLOSE, |out| {
            out.put_string(&handle);
        }),
        0
    );
    assert_eq!(client.status(packet::READ, read(0, 5)), 4);
    assert_eq!(
        client.status(packet::CLOSE, |out| {
            out.put_string(&handle);
        }),
        4
    );
}

#[test]
fn what_is_appended_goes_to_the_end_whatever_its_place() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("log"), "one ").unwrap();
    let mut client = Client::new(home.path());
    let handle = client.open("log", WRITE | APPEND | CREATE);
    client.status(packet::WRITE, |out| {
        out.put_string(&handle).put_u64(0).put_string("two");
    });
    let text = std::fs::read_to_string(home.path().join("log")).unwrap();
    assert_eq!(text, "one two");
}

#[test]
fn an_answer_is_never_longer_than_a_packet() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("big"), vec![7; 1 << 20]).unwrap();
    let mut client = Client::new(home.path());
    let handle = client.open("big", READ);
    let (_, rest) = client.ask(packet::READ, |out| {
        out.put_string(&handle).put_u64(0).put_u32(1 << 20);
    });
    assert_eq!(rest.len() - 4, MOST_DATA);
}

#[test]
fn renames_and_exclusive_files_replace_nothing_and_posix_renames_do() {
    let home = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        std::fs::write(home.path().join(name), name).unwrap();
    }
    let mut client = Client::new(home.path());
    let rename = |out: &mut Vec<u8>| {
        out.put_string("a").put_string("b");
    };
    assert_eq!(client.status(packet::RENAME, rename), 4);
    let status = client.status(packet::OPEN, |out| {
        out.put_string("b")
            .put_u32(WRITE | CREATE | EXCLUSIVE)
            .put_u32(0);
    });
    assert_eq!(status, 4);
    assert_eq!(std::fs::read_to_string(home.path().join("b")).unwrap(), "b");
    let status = client.status(packet::EXTENDED, |out| {
        out.put_string("posix-rename@openssh.com");
        rename(out);
    });
    assert_eq!(status, 0);
    assert_eq!(std::fs::read_to_string(home.path().join("b")).unwrap(), "a");
}

#[test]
fn a_part_of_a_file_is_copied_without_passing_by_the_client() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("from"), "0123456789").unwrap();
    let mut client = Client::new(home.path());
    let from = client.open("from", READ);
    let to = client.open("to", WRITE | CREATE);
    for (start, length, place) in [(2, 3, 0), (7, 0, 3)] {
        let status = client.status(packet::EXTENDED, |out| {
            out.put_string("copy-data").put_string(&from);
            out.put_u64(start).put_u64(length);
            out.put_string(&to).put_u64(place);
        });
        assert_eq!(status, 0);
    }
    let text = std::fs::read_to_string(home.path().join("to")).unwrap();
    assert_eq!(text, "234789");
}

#[test]
fn a_pipe_without_another_end_does_not_block() {
    let home = tempfile::tempdir().unwrap();
    let pipe = home.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut client = Client::new(home.path());
    let status = client.status(packet::OPEN, |out| {
        out.put_string("pipe").put_u32(WRITE).put_u32(0);
    });
    assert_eq!(status, 4);
    client.open("pipe", READ);
}

#[test]
fn a_client_cannot_have_files_open_without_end() {
    let home = tempfile::tempdir().unwrap();
    let mut client = Client::new(home.path());
    for _ in 0..super::answer::HANDLES {
        client.open("/dev/null", READ);
    }
    let status = client.status(packet::OPEN, |out| {
        out.put_string("/dev/null").put_u32(READ).put_u32(0);
    });
    assert_eq!(status, 4);
}

#[test]
fn questions_that_end_too_soon_or_are_unknown_have_answers_too() {
    let home = tempfile::tempdir().unwrap();
    let mut client = Client::new(home.path());
    for kind in 2..=255 {
        let (answer, rest) = client.ask(kind, |_| {});
        assert_eq!(answer, packet::STATUS, "{kind}");
        let code = Reader::new(&rest).u32().unwrap();
        assert!([5, 8].contains(&code), "{kind} {code}");
    }
    let mut out = Vec::new();
    client.files.answer(&[packet::OPEN], &mut out);
    assert_eq!(first(&out).unwrap().unwrap()[0], packet::STATUS);
}

#[tokio::test]
async fn a_length_that_no_packet_has_ends_the_session() {
    for length in [0_u32, 1 << 20] {
        let mut question = Vec::new();
        question.put_u32(length).put(&[1; 100]);
        let outcome = serve(&question[..], Vec::new(), "/".into()).await;
        assert!(outcome.is_err());
    }
}

#[tokio::test]
async fn questions_are_answered_in_their_order_whatever_the_size_of_the_answers() {
    let home = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..1 << 20)
        .map(|at| u8::try_from(at / 5000 % 251).unwrap())
        .collect();
    std::fs::write(home.path().join("big"), &bytes).unwrap();
    let mut questions = Vec::new();
    let mut ask = |kind: u8, id: u32, fill: &dyn Fn(&mut Vec<u8>)| {
        packet::say(&mut questions, kind, id, fill);
    };
    ask(packet::OPEN, 0, &|out| {
        out.put_string("big").put_u32(READ).put_u32(0);
    });
    for part in 0..32_u32 {
        ask(packet::READ, part + 1, &|out| {
            out.put_string(0_u32.to_be_bytes());
            out.put_u64(u64::from(part) * 32768).put_u32(32768);
        });
    }
    let (mut theirs, ours) = tokio::io::duplex(1 << 16);
    let home = home.path().to_owned();
    let serving = tokio::spawn(async move {
        serve(&questions[..], ours, home).await.unwrap();
    });
    let mut answers = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut theirs, &mut answers)
        .await
        .unwrap();
    serving.await.unwrap();
    let mut rest = &answers[..];
    let mut read = Vec::new();
    for id in 0..33_u32 {
        let packet = first(rest).unwrap().unwrap();
        assert_eq!(packet[1..5], id.to_be_bytes());
        if id > 0 {
            read.extend_from_slice(&packet[9..]);
        }
        rest = &rest[4 + packet.len()..];
    }
    assert!(rest.is_empty() && read == bytes);
}
