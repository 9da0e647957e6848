//! Files: scp, sftp and rsync.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use relay_agent::ssh::Options;

use crate::support::{Fixture, finish, has, random_file, same};

/// What is copied, MiB. `SSH_TEST_MIB` says otherwise.
fn size() -> usize {
    let asked = std::env::var("SSH_TEST_MIB").ok();
    asked.map_or(256, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn scp_brings_and_fetches_a_large_file_unharmed() {
    if !has("scp") {
        return;
    }
    let fixture = Fixture::new().await;
    let [from, there, back] = ["from", "there", "back"].map(|name| fixture.path(name));
    random_file(from.as_ref(), size());
    let remote = format!("dev@127.0.0.1:{there}");
    for (source, target) in [(&from, &remote), (&remote, &back)] {
        let mut scp = fixture.program("scp");
        scp.args(["-p", source, target]);
        let start = std::time::Instant::now();
        let output = finish(scp).await;
        assert!(output.status.success(), "{output:?}");
        println!("{} MiB in {:.2?}", size(), start.elapsed());
    }
    assert!(same(&from, &there) && same(&from, &back));
    let modified = |path: &str| std::fs::metadata(path).unwrap().mtime();
    assert_eq!(modified(&from), modified(&back));
}

#[tokio::test(flavor = "multi_thread")]
async fn scp_of_old_is_a_program_like_others() {
    if !has("scp") {
        return;
    }
    let fixture = Fixture::new().await;
    let (from, there) = (fixture.path("from"), fixture.path("there"));
    random_file(from.as_ref(), 8);
    let mut scp = fixture.program("scp");
    scp.args(["-O", &from, &format!("dev@127.0.0.1:{there}")]);
    let output = finish(scp).await;
    assert!(output.status.success(), "{output:?}");
    assert!(same(from, there));
}

#[tokio::test(flavor = "multi_thread")]
async fn sftp_does_what_it_is_told() {
    if !has("sftp") {
        return;
    }
    let fixture = Fixture::new().await;
    let place = fixture.path("place");
    let [from, batch] = ["from", "batch"].map(|name| fixture.path(name));
    random_file(from.as_ref(), 3);
    let commands = format!(
        "mkdir {place}\ncd {place}\nput {from} one\nchmod 640 one\nln one two\nln -s one link\n\
         rename two three\nmkdir sub\nput {from} sub/four\nrm sub/four\nrmdir sub\nls -l\ndf\n\
         get one {from}.back\npwd\ncp one five\n"
    );
    std::fs::write(&batch, commands).unwrap();
    let mut sftp = fixture.program("sftp");
    sftp.args(["-b", &batch, "dev@127.0.0.1"]);
    let output = finish(sftp).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(
        said.contains("-rw-r-----") && said.contains("3145728"),
        "{said}"
    );
    assert!(
        said.contains(&format!("working directory: {place}")),
        "{said}"
    );
    let at = |name: &str| Path::new(&place).join(name);
    let metadata = std::fs::metadata(at("one")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
    assert_eq!(
        metadata.ino(),
        std::fs::metadata(at("three")).unwrap().ino()
    );
    assert_eq!(std::fs::read_link(at("link")).unwrap(), Path::new("one"));
    for copy in [at("one"), at("five"), format!("{from}.back").into()] {
        assert!(same(&from, copy));
    }
    assert!(!at("two").exists() && !at("sub").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn sftp_tells_why_something_cannot_be_done() {
    if !has("sftp") {
        return;
    }
    let fixture = Fixture::new().await;
    let batch = fixture.path("batch");
    std::fs::write(&batch, "-get /no/such/file\n-ls /no/such\nls /proc/self\n").unwrap();
    let mut sftp = fixture.program("sftp");
    sftp.args(["-b", &batch, "dev@127.0.0.1"]);
    let output = finish(sftp).await;
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("not found").count(), 2, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rsync_brings_a_tree_up_to_date() {
    if !has("rsync") {
        return;
    }
    let fixture = Fixture::new().await;
    let [tree, there] = ["tree", "there"].map(|name| fixture.path(name));
    std::fs::create_dir_all(format!("{tree}/deep/er")).unwrap();
    for number in 0..200 {
        std::fs::write(format!("{tree}/deep/{number}"), number.to_string()).unwrap();
    }
    random_file(format!("{tree}/deep/er/big").as_ref(), 8);
    for pass in 0..2 {
        std::fs::write(format!("{tree}/deep/7"), format!("pass {pass}")).unwrap();
        let mut rsync = tokio::process::Command::new("rsync");
        rsync.args(["-a", "--checksum", "--delete", "-e"]);
        rsync.arg(format!("ssh {}", fixture.options().join(" ")));
        rsync.args([format!("{tree}/"), format!("dev@127.0.0.1:{there}/")]);
        let output = finish(rsync).await;
        assert!(output.status.success(), "{output:?}");
        let text = std::fs::read_to_string(format!("{there}/deep/7")).unwrap();
        assert_eq!(text, format!("pass {pass}"));
        assert!(same(
            format!("{tree}/deep/er/big"),
            format!("{there}/deep/er/big")
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_not_moved_where_that_is_blocked() {
    if !has("scp") || !has("sftp") {
        return;
    }
    let options = Options {
        block_file_transfer: true,
        ..Options::default()
    };
    let fixture = Fixture::with(options).await;
    let (from, there) = (fixture.path("from"), fixture.path("there"));
    random_file(from.as_ref(), 1);
    for words in [&["-O"][..], &[]] {
        let mut scp = fixture.program("scp");
        scp.args(words)
            .args([&from, &format!("dev@127.0.0.1:{there}")]);
        let output = finish(scp).await;
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("--block-file-transfer"), "{said}");
    }
    assert!(!Path::new(&there).exists());
}
