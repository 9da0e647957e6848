//! The text of the section: hosts, their options, and the command that leads to them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use super::choices::Choices;
use super::section::{END, START};

/// What every host gets unless something else is asked for: the tunnel knows whom it leads to, and
/// its host keys mean nothing to OpenSSH's list of known hosts.
const DEFAULTS: [&str; 4] = [
    "ConnectTimeout=0",
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "LogLevel ERROR",
];

/// Options that a deployment may not set: they start programs, read code or end the section.
const REFUSED: [&str; 13] = [
    "host",
    "match",
    "include",
    "proxycommand",
    "proxyjump",
    "localcommand",
    "permitlocalcommand",
    "remotecommand",
    "knownhostscommand",
    "pkcs11provider",
    "securitykeyprovider",
    "xauthlocation",
    "controlpath",
];

/// What the section is made of.
#[derive(Debug)]
pub(super) struct Parts {
    /// The program that OpenSSH runs.
    pub(super) binary: PathBuf,
    /// Words between the program and `ssh`: global flags.
    pub(super) global: Vec<String>,
    /// The user's choices.
    pub(super) choices: Choices,
    /// What host names start with; empty for none.
    pub(super) prefix: String,
    /// What host names end with, without its dot; empty for none.
    pub(super) suffix: String,
    /// Options that the deployment wants.
    pub(super) deployment: BTreeMap<String, String>,
    /// Names of hosts without prefix and suffix, in place of a pattern.
    pub(super) hosts: Option<Vec<String>>,
    /// Leave the commands out.
    pub(super) skip_proxy_command: bool,
}

impl Parts {
    /// The whole section, marker lines included.
    ///
    /// # Errors
    /// For everything that could not be read back as it is meant, or could mean more than that.
    pub(super) fn section(&self) -> Result<String> {
        ensure!(
            !(self.prefix.is_empty() && self.suffix.is_empty()),
            "with neither --ssh-host-prefix nor --hostname-suffix no host has a name"
        );
        host_part("--ssh-host-prefix", &self.prefix)?;
        host_part("--hostname-suffix", &self.suffix)?;
        for header in &self.choices.headers {
            one_line("--header", header)?;
        }
        let options = self.options()?;
        let mut text = format!(
            "{START}\n\
             # Written by `relay config-ssh`, which replaces everything down to the END line when it\n\
             # runs again. What is above and below stays.\n#\n"
        );
        let remembered = self.choices.remember();
        if !remembered.is_empty() {
            let _ = writeln!(text, "# Last config-ssh options:\n{remembered}#");
        }
        if !self.prefix.is_empty() {
            self.prefix_hosts(&mut text, &options)?;
        }
        if !self.suffix.is_empty() {
            self.suffix_hosts(&mut text, &options)?;
        }
        text.push_str(END);
        text.push('\n');
        Ok(text)
    }

    fn prefix_hosts(&self, text: &mut String, options: &[String]) -> Result<()> {
        let prefix = &self.prefix;
        let hosts = self.names(|name| format!("{prefix}{name}"), &format!("{prefix}*"));
        for host in hosts {
            write_host(text, &host, options);
            self.write_command(text, &["--ssh-host-prefix", prefix])?;
        }
        Ok(())
    }

    fn suffix_hosts(&self, text: &mut String, options: &[String]) -> Result<()> {
        let suffix = &self.suffix;
        let hosts = self.names(|name| format!("{name}.{suffix}"), &format!("*.{suffix}"));
        for host in hosts {
            write_host(text, &host, options);
            if !self.skip_proxy_command {
                // Where Coder's VPN has the host, OpenSSH reaches it by itself.
                let program = self.program()?;
                let exists = format!("{program} connect exists %h");
                let _ = writeln!(
                    text,
                    "Match host {} !exec \"{exists}\"",
                    host.replace(' ', ",")
                );
            }
            self.write_command(text, &["--hostname-suffix", suffix])?;
        }
        Ok(())
    }

    /// Host lines: one for all, or one for each name.
    fn names(&self, full: impl Fn(&str) -> String, pattern: &str) -> Vec<String> {
        match &self.hosts {
            None => vec![pattern.to_owned()],
            Some(names) => names.iter().map(|name| full(name)).collect(),
        }
    }

    fn write_command(&self, text: &mut String, host: &[&str]) -> Result<()> {
        if self.skip_proxy_command {
            return Ok(());
        }
        let mut words = vec![self.program()?];
        words.extend(self.global.iter().map(|word| quoted(word)));
        for header in &self.choices.headers {
            words.extend(["--header".to_owned(), quoted(header)]);
        }
        words.extend(["ssh", "--stdio"].map(str::to_owned));
        if let Some(wait) = &self.choices.wait {
            words.extend(["--wait".to_owned(), wait.clone()]);
        }
        if self.choices.disable_autostart {
            words.push("--disable-autostart".to_owned());
        }
        words.extend(host.iter().map(|word| (*word).to_owned()));
        let _ = writeln!(text, "\tProxyCommand {} %h", words.join(" "));
        Ok(())
    }

    /// The program as a word of a shell's command, within double quotes of OpenSSH's too.
    fn program(&self) -> Result<String> {
        let Some(path) = self.binary.to_str() else {
            bail!("{} is not UTF-8", self.binary.display());
        };
        ensure!(
            self.binary.is_absolute(),
            "--coder-binary-path must be absolute; \"{path}\" is not"
        );
        ensure!(
            !path.contains(|c: char| c.is_control() || c == '"' || c == '\\'),
            "OpenSSH cannot run {path:?}: a quote, a backslash or a control character is in its path"
        );
        Ok(quoted(path))
    }

    /// Options of a host: the user's, then the deployment's, then what is usual. For each name the
    /// first of them counts.
    fn options(&self) -> Result<Vec<String>> {
        let mut options: Vec<String> = Vec::new();
        let mut taken: Vec<String> = Vec::new();
        for option in &self.choices.options {
            let name = user_option(option)?;
            options.push(option.clone());
            taken.push(name);
        }
        for (name, value) in &self.deployment {
            if deployment_option(name, value) && !taken.contains(&name.to_ascii_lowercase()) {
                options.push(format!("{name} {value}"));
                taken.push(name.to_ascii_lowercase());
            }
        }
        let usual = DEFAULTS.iter().map(|option| (*option).to_owned());
        options.extend(usual.filter(|option| !taken.contains(&option_name(option))));
        Ok(options)
    }

    /// Names of the deployment's options that are left out.
    pub(super) fn refused(&self) -> impl Iterator<Item = &str> {
        let refused = self
            .deployment
            .iter()
            .filter(|(name, value)| !deployment_option(name, value));
        refused.map(|(name, _)| name.as_str())
    }
}

fn write_host(text: &mut String, host: &str, options: &[String]) {
    let _ = writeln!(text, "Host {host}");
    for option in options {
        let _ = writeln!(text, "\t{option}");
    }
}

/// A word for a shell, in which OpenSSH finds no `%`.
fn quoted(word: &str) -> String {
    let word = word.replace('%', "%%");
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word;
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn option_name(option: &str) -> String {
    let end = option.find(|c: char| c == '=' || c.is_whitespace());
    option[..end.unwrap_or(option.len())].to_ascii_lowercase()
}

/// The name of a user's option.
fn user_option(option: &str) -> Result<String> {
    one_line("--ssh-option", option)?;
    let name = option_name(option);
    let value = option[name.len()..].trim_matches(|c: char| c == '=' || c.is_whitespace());
    let letters = name.chars().all(|c| c.is_ascii_alphanumeric());
    ensure!(
        letters && !name.is_empty() && !value.is_empty(),
        "--ssh-option \"{option}\" is not of the form NAME=VALUE"
    );
    ensure!(
        !["host", "match", "include"].contains(&name.as_str()),
        "--ssh-option \"{option}\" begins something else than an option"
    );
    Ok(name)
}

/// Whether a deployment may have this option set here.
fn deployment_option(name: &str, value: &str) -> bool {
    let letters = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
    letters
        && !REFUSED.contains(&name.to_ascii_lowercase().as_str())
        && !value.trim().is_empty()
        && !value.contains(char::is_control)
}

fn one_line(flag: &str, value: &str) -> Result<()> {
    ensure!(
        !value.contains(char::is_control),
        "{flag} {value:?} has a control character in it"
    );
    Ok(())
}

/// A part of a host's name goes into patterns and commands.
fn host_part(flag: &str, part: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    ensure!(
        part.chars().all(fits) && !part.starts_with('-'),
        "{flag} {part:?} cannot be part of a host's name"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        Parts {
            binary: "/usr/bin/relay".into(),
            global: Vec::new(),
            choices: Choices::default(),
            prefix: "coder.".to_owned(),
            suffix: "coder".to_owned(),
            deployment: BTreeMap::new(),
            hosts: None,
            skip_proxy_command: false,
        }
    }

    /// The lines that OpenSSH reads.
    fn read(section: &str) -> Vec<&str> {
        section
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect()
    }

    #[test]
    fn hosts_are_reached_by_prefix_and_by_suffix() {
        let section = parts().section().unwrap();
        assert_eq!(
            read(&section),
            [
                "Host coder.*",
                "\tConnectTimeout=0",
                "\tStrictHostKeyChecking=no",
                "\tUserKnownHostsFile=/dev/null",
                "\tLogLevel ERROR",
                "\tProxyCommand /usr/bin/relay ssh --stdio --ssh-host-prefix coder. %h",
                "Host *.coder",
                "\tConnectTimeout=0",
                "\tStrictHostKeyChecking=no",
                "\tUserKnownHostsFile=/dev/null",
                "\tLogLevel ERROR",
                "Match host *.coder !exec \"/usr/bin/relay connect exists %h\"",
                "\tProxyCommand /usr/bin/relay ssh --stdio --hostname-suffix coder %h",
            ]
        );
        assert!(section.starts_with(START) && section.ends_with(&format!("{END}\n")));
    }

    #[test]
    fn an_empty_prefix_or_suffix_leaves_its_hosts_out() {
        let without = |prefix: &str, suffix: &str| {
            let (prefix, suffix) = (prefix.to_owned(), suffix.to_owned());
            Parts {
                prefix,
                suffix,
                ..parts()
            }
            .section()
        };
        assert!(!without("", "coder").unwrap().contains("coder.*"));
        assert!(!without("coder.", "").unwrap().contains("*.coder"));
        assert!(without("", "").is_err());
    }

    #[test]
    fn the_users_options_win_over_the_deployments_and_these_over_the_usual_ones() {
        let mut parts = parts();
        parts.choices.options = vec!["loglevel=DEBUG".to_owned(), "ForwardAgent=yes".to_owned()];
        parts.deployment = [
            ("ForwardAgent", "no"),
            ("ConnectTimeout", "9"),
            ("SetEnv", "A=b"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        assert_eq!(
            parts.options().unwrap(),
            [
                "loglevel=DEBUG",
                "ForwardAgent=yes",
                "ConnectTimeout 9",
                "SetEnv A=b",
                "StrictHostKeyChecking=no",
                "UserKnownHostsFile=/dev/null",
            ]
        );
    }

    #[test]
    fn a_deployment_cannot_make_openssh_run_programs() {
        let mut parts = parts();
        parts.deployment = [
            ("ProxyCommand", "rm -rf ~"),
            ("localcommand", "x"),
            ("Compression", "yes\nProxyCommand x"),
            ("A b", "c"),
            ("ServerAliveInterval", "5"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let section = parts.section().unwrap();
        assert!(section.contains("ServerAliveInterval 5") && !section.contains("rm -rf"));
        let refused: Vec<_> = parts.refused().collect();
        assert_eq!(
            refused,
            ["A b", "Compression", "ProxyCommand", "localcommand"]
        );
        for (prefix, suffix) in [
            ("a b", "coder"),
            ("coder.", "x$(y)"),
            ("-o", "coder"),
            ("a\n", ""),
        ] {
            let (prefix, suffix) = (prefix.to_owned(), suffix.to_owned());
            assert!(
                Parts {
                    prefix,
                    suffix,
                    ..super::tests::parts()
                }
                .section()
                .is_err()
            );
        }
    }

    #[test]
    fn wrong_options_are_refused() {
        for option in [
            "",
            "=x",
            "Name",
            "Name=",
            "A\nB=c",
            "Host *",
            "match all",
            "Na-me=x",
        ] {
            let mut parts = parts();
            parts.choices.options = vec![option.to_owned()];
            assert!(parts.section().is_err(), "{option:?}");
        }
    }

    #[test]
    fn a_program_in_a_strange_place_is_quoted_for_the_shell() {
        let at = |binary: &str| {
            Parts {
                binary: binary.into(),
                ..parts()
            }
            .section()
        };
        let section = at("/my tools/100%/it's/relay").unwrap();
        assert!(section.contains(r"ProxyCommand '/my tools/100%%/it'\''s/relay' ssh --stdio"));
        for bad in ["relay", "/a\"b", "/a\nb", "/a\\b"] {
            assert!(at(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn choices_are_remembered_and_passed_on() {
        let mut parts = parts();
        parts.choices.wait = Some("yes".to_owned());
        parts.choices.disable_autostart = true;
        parts.choices.headers = vec!["X-Test=a b".to_owned()];
        parts.global = vec!["--global-config".to_owned(), "/my config".to_owned()];
        let section = parts.section().unwrap();
        assert!(section.contains(
            "/usr/bin/relay --global-config '/my config' --header 'X-Test=a b' ssh --stdio \
             --wait yes --disable-autostart --ssh-host-prefix coder. %h"
        ));
        assert_eq!(
            Choices::recall(section.as_bytes()),
            (parts.choices.clone(), vec![])
        );
    }

    #[test]
    fn without_wildcards_each_host_is_named() {
        let names = ["dev", "dev.gpu"].map(str::to_owned).to_vec();
        let parts = Parts {
            hosts: Some(names),
            ..parts()
        };
        let section = parts.section().unwrap();
        let hosts: Vec<_> = read(&section)
            .into_iter()
            .filter(|line| line.starts_with("Host "))
            .map(|line| &line[5..])
            .collect();
        assert_eq!(
            hosts,
            ["coder.dev", "coder.dev.gpu", "dev.coder", "dev.gpu.coder"]
        );
    }
}
