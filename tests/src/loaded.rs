//! What relay has in the kernel, as bpftool shows it.

use serde_json::Value;

use crate::net::Namespace;

/// Ids of relay's programs, maps and links, with what each is. Those of other processes of relay on
/// this machine are among them.
///
/// # Panics
/// When bpftool says something else.
pub fn loaded(namespace: &Namespace) -> Vec<(&'static str, u64)> {
    let show = |kind: &str| -> Vec<Value> {
        let text = namespace.tool("bpftool", &["-j", kind, "show"]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{kind}: {error}: {text}"))
    };
    let name = |thing: &Value| thing["name"].as_str().unwrap_or_default().to_owned();
    let mut ids = Vec::new();
    let links = show("link");
    let programs = show("prog");
    let programs = programs.iter();
    for program in programs.filter(|program| name(program).starts_with("relay_")) {
        let id = program["id"].as_u64().expect("id");
        ids.push(("prog", id));
        let mine = links.iter().filter(|link| link["prog_id"] == id);
        ids.extend(mine.filter_map(|link| Some(("link", link["id"].as_u64()?))));
    }
    let maps = show("map");
    let mine = maps.iter().filter(|map| name(map).starts_with("RELAY_"));
    ids.extend(mine.filter_map(|map| Some(("map", map["id"].as_u64()?))));
    ids
}
