//! What a user has chosen, as the section remembers it.

use std::fmt::Write;

/// Starts each remembered option.
const MARK: &str = "# :";

/// Options that are remembered in the section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choices {
    /// Value of `--wait`; `None` is the default.
    pub(super) wait: Option<String>,
    /// Value of `--ssh-host-prefix`; `None` is the deployment's.
    pub(super) prefix: Option<String>,
    /// Value of `--hostname-suffix`; `None` is the deployment's.
    pub(super) suffix: Option<String>,
    /// `--disable-autostart`.
    pub(super) disable_autostart: bool,
    /// `--no-wildcard`.
    pub(super) no_wildcard: bool,
    /// Values of `--ssh-option`.
    pub(super) options: Vec<String>,
    /// Values of `--header`.
    pub(super) headers: Vec<String>,
}

impl Choices {
    /// As lines of comment.
    pub(super) fn remember(&self) -> String {
        let mut text = String::new();
        let mut add = |key: &str, value: &str| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{MARK}{key}={value}");
        };
        for (key, value) in [
            ("wait", &self.wait),
            ("ssh-host-prefix", &self.prefix),
            ("hostname-suffix", &self.suffix),
        ] {
            if let Some(value) = value {
                add(key, value);
            }
        }
        for (key, set) in [
            ("disable-autostart", self.disable_autostart),
            ("no-wildcard", self.no_wildcard),
        ] {
            if set {
                add(key, "true");
            }
        }
        for option in &self.options {
            add("ssh-option", option);
        }
        for header in &self.headers {
            add("header", header);
        }
        text
    }

    /// From a section, with the names of remembered options that mean nothing here.
    pub(super) fn recall(section: &[u8]) -> (Self, Vec<String>) {
        let (mut choices, mut unknown) = (Self::default(), Vec::new());
        let section = String::from_utf8_lossy(section);
        let remembered = section.lines().filter_map(|line| line.strip_prefix(MARK));
        for (key, value) in remembered.filter_map(|line| line.split_once('=')) {
            let value = value.trim_end_matches('\r').to_owned();
            match key {
                "wait" => choices.wait = Some(value).filter(|value| value != "auto"),
                "ssh-host-prefix" => choices.prefix = Some(value),
                "hostname-suffix" => choices.suffix = Some(value),
                "disable-autostart" => choices.disable_autostart = value == "true",
                "no-wildcard" => choices.no_wildcard = value == "true",
                "ssh-option" => choices.options.push(value),
                "header" => choices.headers.push(value),
                _ => unknown.push(key.to_owned()),
            }
        }
        (choices, unknown)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn choices()(
            wait in option::of("yes|no"),
            prefix in option::of("[a-z.]{0,6}"),
            suffix in option::of("[a-z.]{0,6}"),
            disable_autostart: bool,
            no_wildcard: bool,
            options in vec("[A-Z][a-z]{2,5}[= ][ -~]{1,8}", 0..3),
            headers in vec("[A-Z]{1,3}=[ -~]{0,8}", 0..3),
        ) -> Choices {
            Choices { wait, prefix, suffix, disable_autostart, no_wildcard, options, headers }
        }
    }

    proptest! {
        #[test]
        fn what_is_remembered_is_recalled(choices in choices()) {
            let section = format!("# Text.\n{}Host *\n", choices.remember());
            prop_assert_eq!(Choices::recall(section.as_bytes()), (choices, vec![]));
        }
    }

    #[test]
    fn options_that_mean_nothing_are_told() {
        let section = b"# :wait=yes\r\n# :header-command=x\n# :nothing\n# other=1\n";
        let (choices, unknown) = Choices::recall(section);
        assert_eq!(choices.wait.as_deref(), Some("yes"));
        assert_eq!(unknown, ["header-command"]);
    }
}
