//! `--config forwards.toml`: named sets of forwards.
//!
//! ```toml
//! [web]
//! workspace = "dev"
//! tcp = ["8080:8000", 9000]
//! udp = ["5353:53"]
//! unix = ["/tmp/docker.sock:/var/run/docker.sock"]
//! reverse = ["8080:3000"]
//! auto = false
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use relay_wire::forwards::AnyForward;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor};
use toml::Spanned;

/// One set.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Set {
    workspace: Option<Spanned<String>>,
    tcp: Vec<Spanned<Spec>>,
    udp: Vec<Spanned<Spec>>,
    unix: Vec<Spanned<Spec>>,
    reverse: Vec<Spanned<Spec>>,
    auto: bool,
}

/// A text, or a bare port.
#[derive(Debug)]
struct Spec(String);

impl<'de> Deserialize<'de> for Spec {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Spec;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a forward as text, or a port")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Spec, E> {
                Ok(Spec(text.to_owned()))
            }

            fn visit_i64<E: serde::de::Error>(self, port: i64) -> Result<Spec, E> {
                match u16::try_from(port) {
                    Ok(1..) => Ok(Spec(port.to_string())),
                    _ => Err(E::custom(format!(
                        "{port} is no port; ports are 1 to 65535"
                    ))),
                }
            }
        }
        from.deserialize_any(Text).map_err(D::Error::custom)
    }
}

/// What the chosen sets ask for, as texts of the flags of the same names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) workspace: Option<String>,
    pub(super) tcp: Vec<String>,
    pub(super) udp: Vec<String>,
    pub(super) unix: Vec<String>,
    pub(super) reverse: Vec<String>,
    pub(super) auto: bool,
}

/// Reads a file and takes the sets of these names; of a file with one set, that.
pub(super) fn read(path: &Path, names: &[String]) -> Result<Chosen> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("--config {shown}"))?;
    choose(&text, names).map_err(|error| anyhow!("{shown}: {error}"))
}

fn choose(text: &str, names: &[String]) -> Result<Chosen> {
    let sets: BTreeMap<String, Set> = toml::from_str(text).map_err(|error| {
        let place = error
            .span()
            .map_or_else(String::new, |span| place(text, &span));
        anyhow!("{place}{}", error.message().trim().replace('\n', ", "))
    })?;
    let known = || {
        let names: Vec<_> = sets.keys().map(String::as_str).collect();
        names.join(", ")
    };
    let only: Vec<String>;
    let names = match names {
        [] if sets.is_empty() => bail!("there is no set; begin one with a line such as [web]"),
        [] if sets.len() > 1 => bail!("there are several sets; choose with --set: {}", known()),
        [] => {
            only = sets.keys().cloned().collect();
            &only
        }
        names => names,
    };
    let mut chosen = Chosen::default();
    for name in names {
        let Some(set) = sets.get(name) else {
            bail!("there is no set \"{name}\"; there is: {}", known());
        };
        add(text, name, set, &mut chosen)?;
    }
    Ok(chosen)
}

/// Adds a set, each text of which is looked at here, where its line is known.
fn add(text: &str, name: &str, set: &Set, chosen: &mut Chosen) -> Result<()> {
    if let Some(workspace) = &set.workspace {
        let given = workspace.get_ref();
        match &chosen.workspace {
            Some(before) if before != given => {
                let at = place(text, &workspace.span());
                bail!("{at}the sets are of two workspaces, \"{before}\" and \"{given}\"");
            }
            _ => chosen.workspace = Some(given.clone()),
        }
    }
    for (kind, specs, list) in [
        ("tcp", &set.tcp, &mut chosen.tcp),
        ("udp", &set.udp, &mut chosen.udp),
        ("unix", &set.unix, &mut chosen.unix),
        ("reverse", &set.reverse, &mut chosen.reverse),
    ] {
        for spec in specs {
            let given = &spec.get_ref().0;
            AnyForward::parse(&format!("{kind}://{given}"))
                .map_err(|error| anyhow!("{}{error}", place(text, &spec.span())))?;
            list.push(given.clone());
        }
    }
    let is_empty = set.tcp.is_empty() && set.udp.is_empty() && set.unix.is_empty();
    if is_empty && set.reverse.is_empty() && !set.auto {
        bail!("the set \"{name}\" forwards nothing; add for example tcp = [\"8080:8000\"]");
    }
    chosen.auto |= set.auto;
    Ok(())
}

/// `line 3, web.tcp: ` for a place in the text.
fn place(text: &str, span: &Range<usize>) -> String {
    let before = &text[..text.floor_char_boundary(span.start)];
    let line = before.matches('\n').count() + 1;
    let (mut set, mut key) = (None, None);
    // The line of the place itself counts: its key may be what is wrong.
    for row in text.lines().take(line) {
        let row = row.trim();
        if let Some(name) = row
            .strip_prefix('[')
            .and_then(|rest| rest.split(']').next())
            && !row.starts_with("[\"")
            && row
                .trim_end_matches(|c: char| c.is_whitespace())
                .ends_with(']')
            && !name.contains([',', '"', '='])
        {
            (set, key) = (Some(name.trim()), None);
        } else if let Some((name, _)) = row.split_once('=')
            && !name.contains(['"', '[', '#'])
        {
            key = Some(name.trim());
        }
    }
    match (set, key) {
        (Some(set), Some(key)) => format!("line {line}, {set}.{key}: "),
        (Some(name), None) | (None, Some(name)) => format!("line {line}, {name}: "),
        (None, None) => format!("line {line}: "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"# forwards
[web]
workspace = "dev"
tcp = ["8080:8000", 9000]
reverse = ["8081:3000"]

[data]
workspace = "dev"
udp = [
  "5353:53",
]
unix = ["/l.sock:/r.sock"]
auto = true
"#;

    fn chosen(text: &str, names: &[&str]) -> Result<Chosen> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        choose(text, &names)
    }

    #[test]
    fn sets_are_chosen_by_name_and_add_up() {
        let both = chosen(FILE, &["web", "data"]).unwrap();
        assert_eq!(both.workspace.as_deref(), Some("dev"));
        assert_eq!(both.tcp, ["8080:8000", "9000"]);
        assert_eq!(
            (&*both.udp[0], &*both.unix[0]),
            ("5353:53", "/l.sock:/r.sock")
        );
        assert!(both.auto);
        let web = chosen(FILE, &["web"]).unwrap();
        assert!(!web.auto && web.udp.is_empty());
        let only = "[x]\ntcp = [1]";
        assert_eq!(chosen(only, &[]).unwrap().tcp, ["1"]);
    }

    #[test]
    fn what_is_wrong_is_named_by_line_and_key() {
        for (text, said) in [
            ("[web]\ntcp = [\"80:\"]", "line 2, web.tcp: "),
            (
                "[web]\ntcp = [\n  \"80\",\n  \"x\",\n]",
                "line 4, web.tcp: ",
            ),
            ("[web]\ntpc = [80]", "line 2, web.tpc: "),
            ("[web]\n\nudp = [0]", "line 3, web.udp: "),
            ("[web]\nudp = \"53\"", "line 2, web.udp: "),
            ("[web]\nauto = 1", "line 2, web.auto: "),
            ("[web]\nunix = [\"a:b\"]", "line 2, web.unix: "),
            ("[web]\nreverse = [\"b\"]", "line 2, web.reverse: "),
            ("[web]\ntcp = [80", "line 2"),
            ("[web]\ntcp = [80]\ntcp = [81]", "line 3, web.tcp: "),
            ("tcp = [80]", "line 1, tcp: "),
        ] {
            let error = chosen(text, &[]).unwrap_err().to_string();
            assert!(error.starts_with(said), "{text:?}: {error}");
            assert!(
                !error.contains('\n') && error.len() > said.len() + 5,
                "{error}"
            );
        }
    }

    #[test]
    fn a_choice_that_cannot_be_made_names_the_sets() {
        for (names, said) in [(&[][..], "data, web"), (&["wbe"][..], "data, web")] {
            let error = chosen(FILE, names).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let two = "[a]\nworkspace = \"x\"\ntcp = [1]\n[b]\nworkspace = \"y\"\ntcp = [2]\n";
        let error = chosen(two, &["a", "b"]).unwrap_err().to_string();
        assert!(error.starts_with("line 5, b.workspace: "), "{error}");
        for empty in ["", "[a]\n"] {
            assert!(chosen(empty, &[]).is_err(), "{empty:?}");
        }
    }
}
