//! The file in which editors read what a session's way looks like, as Coder's command line writes it
//! (coder_facts §3.2).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use relay_forward::ssh::{Network, NetworkWatch};
use serde::Serialize;

/// The file's content; times are in milliseconds.
#[derive(Serialize)]
struct Content<'a> {
    p2p: bool,
    latency: f64,
    preferred_derp: &'a str,
    derp_latency: BTreeMap<&'a str, f64>,
    upload_bytes_sec: u64,
    download_bytes_sec: u64,
    using_coder_connect: bool,
}

impl<'a> From<&'a Network> for Content<'a> {
    fn from(network: &'a Network) -> Self {
        let relays = network.relays.iter();
        Self {
            p2p: network.direct,
            latency: network.latency.unwrap_or_default().as_secs_f64() * 1000.0,
            preferred_derp: &network.relay,
            derp_latency: relays
                .map(|(name, seconds)| (name.as_str(), seconds * 1000.0))
                .collect(),
            upload_bytes_sec: network.sent,
            download_bytes_sec: network.received,
            using_coder_connect: false,
        }
    }
}

/// A file that is gone with the session.
struct File(PathBuf);

impl File {
    /// Never seen half written.
    fn write(&self, network: &Network) -> std::io::Result<()> {
        let text = serde_json::to_vec(&Content::from(network))?;
        let unfinished = self.0.with_extension("tmp");
        std::fs::write(&unfinished, text)?;
        std::fs::rename(&unfinished, &self.0)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Writes the file of the process that started this one, in `folder`, which is made if need be.
pub(super) fn watch(folder: &Path, interval: Duration) -> Result<NetworkWatch> {
    let failed = || format!("cannot make {}", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    let file = File(folder.join(format!("{}.json", nix::unistd::getppid())));
    let tell = move |network: &Network| {
        if let Err(error) = file.write(network) {
            tracing::debug!(%error, "the file about the network was not written");
        }
    };
    Ok(NetworkWatch {
        interval,
        tell: Arc::new(tell),
    })
}

/// Reads `5s`, `500ms` or `1m`.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000)];
    let parsed = units.iter().find_map(|(unit, factor)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*factor).filter(|time| *time > 0)
    });
    let read = parsed.map(Duration::from_millis);
    read.ok_or_else(|| "use a time such as 5s, 500ms or 1m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network {
            direct: true,
            latency: Some(Duration::from_micros(1500)),
            relay: "home".to_owned(),
            relays: vec![("home".to_owned(), 0.25)],
            sent: 7,
            received: 9,
        }
    }

    #[test]
    fn the_file_has_the_fields_that_editors_read_and_goes_with_the_session() {
        let folder = tempfile::tempdir().unwrap();
        let watch = watch(&folder.path().join("new"), Duration::from_secs(5)).unwrap();
        (watch.tell)(&network());
        let path = folder
            .path()
            .join(format!("new/{}.json", nix::unistd::getppid()));
        let text = std::fs::read_to_string(&path).unwrap();
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "p2p": true, "latency": 1.5, "preferred_derp": "home", "derp_latency": {"home": 250.0},
            "upload_bytes_sec": 7, "download_bytes_sec": 9, "using_coder_connect": false,
        });
        assert_eq!(found, expected);
        drop(watch);
        assert!(!path.exists());
    }

    #[test]
    fn intervals_are_times_with_a_unit() {
        for (text, expected) in [
            ("5s", Some(5000)),
            ("250ms", Some(250)),
            ("1m", Some(60_000)),
        ] {
            assert_eq!(interval(text).ok(), expected.map(Duration::from_millis));
        }
        for bad in ["", "5", "s", "0s", "-1s", "1h"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
