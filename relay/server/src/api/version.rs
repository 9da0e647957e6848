//! Versions of the control protocol.

use super::Refusal;

/// The newest version that is spoken.
pub(super) const NEWEST: &str = "2.10";
const MAJOR: u32 = 2;
const MINOR: u32 = 10;

/// Accepts every `2.x` up to the newest; `missing` is what no version at all means.
pub(super) fn check(asked: Option<&str>, missing: &str) -> Result<(), Refusal> {
    let refuse =
        |why: String| Err(Refusal::bad("Unknown or unsupported API version").field("version", why));
    let text = asked.filter(|text| !text.is_empty()).unwrap_or(missing);
    let parsed = text
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let Some((major, minor)): Option<(u32, u32)> = parsed else {
        return refuse(format!("invalid version string: {text}"));
    };
    match major {
        MAJOR if minor <= MINOR => Ok(()),
        MAJOR => refuse(format!(
            "server is at version {NEWEST}, behind requested minor version {text}"
        )),
        major if major > MAJOR => refuse(format!(
            "server is at version {NEWEST}, behind requested major version {text}"
        )),
        _ => refuse(format!("version {text} is no longer supported")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_of_the_second_series_up_to_ours_is_taken() {
        for good in ["2.0", "2.7", "2.10"] {
            assert!(check(Some(good), "1.0").is_ok(), "{good}");
        }
        for bad in [
            "1.0",
            "2.11",
            "3.0",
            "2",
            "x",
            "2.x",
            "-1.0",
            "99999999999.0",
        ] {
            assert!(check(Some(bad), "2.0").is_err(), "{bad}");
        }
        assert!(check(None, "1.0").is_err());
        assert!(check(None, "2.0").is_ok());
    }
}
