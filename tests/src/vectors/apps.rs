//! The dashboard route: hosts, access, what is changed on the way.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use relay_server::apps::access::{self, Access, PathPolicy, ShareLevel, Visitor};
use relay_server::apps::cors::Behavior;
use relay_server::apps::forwarded::{Trust, wire_case};
use relay_server::apps::hostname::{AppHost, HostError, Protocol, change_protocol, port_info};
use relay_server::apps::identity::{Identity, IdentityError};
use relay_server::apps::pattern::{Handler, Pattern, PatternError, policy_host, route};
use relay_server::apps::redirect::{self, Place};
use relay_server::apps::{cookies, cors as cors_rules, names as name_rules};
use relay_server::usage::{Subject, Usage};
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use super::{Ran, proxy, text};

/// Compares what `check` finds; a row that it does not know (`None`) is left.
fn with(row: &Value, check: impl Fn(&Value, &Value) -> Option<Value>) -> Ran {
    let expect = &row["expect"];
    match check(&row["input"], expect) {
        Some(found) => {
            assert_eq!(&found, expect);
            Ran::Passed
        }
        None => Ran::Left,
    }
}

fn protocol(text: &str) -> Protocol {
    if text == "https" {
        Protocol::Https
    } else {
        Protocol::Http
    }
}

fn port_json(port: Option<(u16, Protocol)>) -> Value {
    port.map_or(
        Value::Null,
        |(port, protocol)| json!({"port": port, "protocol": protocol.scheme()}),
    )
}

pub(super) fn hostname(row: &Value) -> Ran {
    with(row, |input, _| {
        let slug = text(input, "slug_or_port");
        Some(match text(input, "op") {
            "parse" => match text(input, "subdomain").parse::<AppHost>() {
                Ok(host) => json!({"ok": {
                    "prefix": host.prefix,
                    "slug_or_port": host.slug_or_port,
                    "agent": host.agent,
                    "workspace": host.workspace,
                    "user": host.user,
                    "port_info": port_json(host.port()),
                }}),
                Err(HostError::InvalidFormat(_)) => json!({"error": "invalid_format"}),
                Err(error) => json!({"error": error.to_string()}),
            },
            "format" => {
                let host = AppHost {
                    prefix: text(input, "prefix").into(),
                    slug_or_port: slug.into(),
                    agent: text(input, "agent").into(),
                    workspace: text(input, "workspace").into(),
                    user: text(input, "user").into(),
                };
                json!({"ok": host.to_string()})
            }
            "change_protocol" => json!({"ok": change_protocol(slug, protocol(text(input, "to")))}),
            "port_info" => match port_info(slug) {
                None => json!({"not_a_port": true}),
                port => port_json(port),
            },
            op => panic!("{op}"),
        })
    })
}

pub(super) fn pattern(row: &Value) -> Ran {
    with(row, |input, _| {
        Some(match text(input, "op") {
            "compile" => match text(input, "pattern").parse::<Pattern>() {
                Ok(_) => json!({"ok": true}),
                Err(error) => json!({"error": match error {
                    PatternError::HasScheme => "has_scheme",
                    PatternError::EdgePeriod => "edge_period",
                    PatternError::TooFewLabels => "too_few_labels",
                    PatternError::NotOneAsterisk => "not_one_asterisk",
                    PatternError::AsteriskNotFirst => "asterisk_not_first",
                    PatternError::InvalidLabel => "invalid_label",
                }}),
            },
            "match" => {
                let pattern: Pattern = text(input, "pattern").parse().expect("as the row says");
                json!({"match": pattern.capture(text(input, "host"))})
            }
            "csp" => json!({"ok": policy_host(text(input, "host"), text(input, "wildcard"))}),
            "advertised_host" => {
                let access = Url::parse(text(input, "access_url")).expect("as the row says");
                let pattern = text(input, "wildcard").parse::<Pattern>().ok();
                let host = pattern.map(|pattern| pattern.advertised(&access));
                json!({"ok": host.unwrap_or_default()})
            }
            "route" => {
                let access = Url::parse(text(input, "access_url")).expect("as the row says");
                let pattern = text(input, "wildcard").parse().ok();
                json!({"handled_by": match route(text(input, "host"), &access, pattern.as_ref()) {
                    Handler::Dashboard => "dashboard",
                    Handler::App(_) => "app",
                    Handler::NoApp(_) => "error400",
                    Handler::Logout => "logout",
                }})
            }
            op => panic!("{op}"),
        })
    })
}

pub(super) fn redirect_sanitize(row: &Value) -> Ran {
    with(row, |input, expect| {
        let path = redirect::safe_path(text(input, "decoded_path"));
        let mut found = expect.clone();
        found["location_path"] = json!(path);
        Some(found)
    })
}

pub(super) fn cookies_strip(row: &Value) -> Ran {
    with(row, |input, _| {
        Some(match input["wildcard_hostname"].as_str() {
            Some(wildcard) => {
                let pattern: Pattern = wildcard.parse().expect("as the row says");
                json!({
                    "cookie_name": cookies::subdomain_session(wildcard),
                    "domain": pattern.cookie_domain(),
                })
            }
            None => json!({"cookie": cookies::without_own(text(input, "cookie"))}),
        })
    })
}

fn header_map(headers: &Value) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers.as_object().into_iter().flatten() {
        let name: HeaderName = name.parse().expect("as the row says");
        let lines = match value {
            Value::Array(lines) => lines.clone(),
            line => vec![line.clone()],
        };
        for line in lines {
            map.append(
                &name,
                HeaderValue::from_str(line.as_str().expect("as the row says"))
                    .expect("as the row says"),
            );
        }
    }
    map
}

/// The headers with the names as `expect` writes them.
fn named_like(headers: &HeaderMap, expect: &Value) -> Value {
    let mut found = BTreeMap::new();
    for (name, value) in headers {
        let written = expect
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name);
        let like = |written: &&String| written.eq_ignore_ascii_case(name.as_str());
        let name = written
            .clone()
            .find(like)
            .cloned()
            .unwrap_or_else(|| name.to_string());
        found.insert(name, value.to_str().expect("as the row says").to_owned());
    }
    json!(found)
}

pub(super) fn forwarded_headers(row: &Value) -> Ran {
    with(row, |input, expect| {
        let list = |key: &str| input[key].as_array().cloned().unwrap_or_default();
        let trust = Trust {
            origins: list("trusted_origins")
                .iter()
                .map(|n| {
                    n.as_str()
                        .expect("as the row says")
                        .parse()
                        .expect("as the row says")
                })
                .collect(),
            headers: list("trusted_headers")
                .iter()
                .map(|n| {
                    n.as_str()
                        .expect("as the row says")
                        .parse()
                        .expect("as the row says")
                })
                .collect(),
        };
        let peer = || text(input, "peer").parse().expect("as the row says");
        let mut headers = header_map(&input["headers"]);
        Some(match text(input, "op") {
            "to_app" => {
                let tls = input["tls"].as_bool().expect("as the row says");
                let remote = trust.towards_app(peer(), tls, &mut headers);
                json!({"remote": remote.to_string(), "headers": named_like(&headers, &expect["headers"])})
            }
            "real_ip" => {
                let headers = header_map(&input["header_lines"]);
                json!({"remote": trust.client(peer(), &headers).to_string()})
            }
            "effective_host" => {
                headers.insert(
                    "host",
                    text(input, "host").parse().expect("as the row says"),
                );
                json!({"host": trust.host(peer(), &headers)})
            }
            "filter" => {
                trust.filter(peer(), &mut headers);
                json!({"headers": named_like(&headers, &expect["headers"])})
            }
            "header_case" => {
                let sent: Vec<String> = list("headers")
                    .iter()
                    .map(|name| wire_case(name.as_str().expect("as the row says")))
                    .collect();
                json!({"sent_as": sent})
            }
            op => panic!("{op}"),
        })
    })
}

pub(super) fn names(row: &Value) -> Ran {
    with(row, |input, _| {
        let value = text(input, "value");
        Some(json!({"valid": match text(input, "kind") {
            "app_slug" => name_rules::is_slug(value),
            "agent_name" => name_rules::is_name(value),
            "user_or_workspace" => name_rules::is_account_name(value),
            kind => panic!("{kind}"),
        }}))
    })
}

pub(super) fn cors(row: &Value) -> Ran {
    if row["input"]["op"] == "request" {
        return proxy::cors(row);
    }
    with(row, |input, expect| match text(input, "op") {
        "strip_response" => Some(stripped(input)),
        _ if input.get("target_host").is_some() => Some(browser(input)),
        _ => Some(middleware(input, expect)),
    })
}

fn stripped(input: &Value) -> Value {
    let mut headers = HeaderMap::new();
    for pair in input["app_response_headers"]
        .as_array()
        .expect("as the row says")
    {
        let name: HeaderName = pair[0]
            .as_str()
            .expect("as the row says")
            .parse()
            .expect("as the row says");
        headers.append(
            name,
            pair[1]
                .as_str()
                .expect("as the row says")
                .parse()
                .expect("as the row says"),
        );
    }
    cors_rules::strip(&mut headers);
    let kept: Vec<[String; 2]> = headers
        .iter()
        .map(|(name, value)| {
            [
                wire_case(name.as_str()),
                value.to_str().expect("as the row says").to_owned(),
            ]
        })
        .collect();
    let pattern = "*.example.com".parse().expect("as the row says");
    let added = cors_rules::actual(&HeaderMap::new(), &pattern, "alice");
    json!({"forwarded_headers": kept, "plus_proxy_vary": vary(&added)})
}

fn vary(headers: &HeaderMap) -> Vec<&str> {
    headers
        .get_all("vary")
        .iter()
        .map(|value| value.to_str().expect("as the row says"))
        .collect()
}

fn middleware(input: &Value, expect: &Value) -> Value {
    let pattern: Pattern = text(input, "wildcard").parse().expect("as the row says");
    let headers = header_map(&input["headers"]);
    let method: Method = text(input, "method").parse().expect("as the row says");
    let user = text(input, "target_user");
    assert_eq!(text(input, "behavior"), Behavior::Simple.as_str());
    let (by, answer) = match cors_rules::is_preflight(&method, &headers) {
        true => ("proxy", cors_rules::preflight(&headers, &pattern, user)),
        false => ("app", cors_rules::actual(&headers, &pattern, user)),
    };
    let mut found = json!({"answered_by": by, "vary": vary(&answer)});
    if by == "proxy" {
        found["status"] = json!(200);
    }
    for (name, value) in &answer {
        if name != "vary" {
            found[name.as_str()] = json!(value.to_str().expect("as the row says"));
        }
    }
    if let Some(note) = expect.get("note") {
        found["note"] = note.clone();
    }
    found
}

fn browser(input: &Value) -> Value {
    let pattern: Pattern = text(input, "wildcard").parse().expect("as the row says");
    let origin = text(input, "origin");
    let headers = header_map(&json!({ "Origin": origin }));
    let answer = cors_rules::actual(&headers, &pattern, text(input, "target_user"));
    let same_origin = origin == format!("https://{}", text(input, "target_host"));
    let allow = answer
        .get("access-control-allow-origin")
        .map(|v| v.to_str().expect("as the row says"));
    json!({
        "allowed": allow.is_some(),
        "same_origin": same_origin,
        "needs_credentials_include": allow.is_some() && !same_origin,
        "allow_origin_header": allow,
    })
}

pub(super) fn auth_flow(row: &Value) -> Ran {
    if row["input"].get("op").is_none() {
        return proxy::auth_flow(row);
    }
    with(row, |input, expect| match text(input, "op") {
        "redirect_uri" => Some(redirect_uri(input)),
        "token_matches" => {
            let identity = |key: &str| serde_json::from_value::<Identity>(input[key].clone());
            let (request, token) = (
                identity("request").expect("as the row says"),
                identity("token").expect("as the row says"),
            );
            Some(json!({"match": token.serves(&request)}))
        }
        "check_request" => {
            let identity = Identity {
                access_method: text(input, "access_method").into(),
                base_path: text(input, "base_path").into(),
                app_prefix: text(input, "app_prefix").into(),
                username_or_id: text(input, "username_or_id").into(),
                app_slug_or_port: text(input, "app_slug_or_port").into(),
                ..Identity::default()
            };
            let identity = identity.with_workspace_and_agent(text(input, "workspace_and_agent"));
            Some(match identity.check() {
                Ok(()) => json!({"ok": true}),
                Err(error) => json!({"error": match error {
                    IdentityError::AccessMethod => "invalid_access_method",
                    IdentityError::Username => "username_required",
                    IdentityError::Me => "me_not_allowed",
                    IdentityError::Workspace => "workspace_required",
                    IdentityError::Slug => "slug_required",
                    _ => expect["error"].as_str().unwrap_or("another"),
                }}),
            })
        }
        _ => None,
    })
}

fn redirect_uri(input: &Value) -> Value {
    let place = |url: &str, wildcard: &str, serves_paths| Place {
        url: Url::parse(text(input, url)).expect("as the row says"),
        wildcard: text(input, wildcard).parse().ok(),
        serves_paths,
    };
    let places = [
        place("proxy_url", "proxy_wildcard", true),
        place("access_url", "wildcard", false),
    ];
    match redirect::target(input["redirect_uri"].as_str(), &places) {
        Ok(url) => {
            let url = url.to_string();
            let bare = url
                .strip_suffix('/')
                .filter(|_| !text(input, "redirect_uri").ends_with('/'));
            json!({"status": 303, "location_before_adding_key": bare.unwrap_or(&url)})
        }
        Err(_) => json!({"status": 400}),
    }
}

pub(super) fn app_access(row: &Value) -> Ran {
    if row["input"].get("access").is_none() {
        return proxy::app_access(row);
    }
    with(row, |input, expect| {
        let share: ShareLevel = text(input, "share").parse().ok()?;
        let method = match text(input, "access") {
            "path" => access::Method::Path,
            "subdomain" => access::Method::Subdomain,
            _ => return None,
        };
        let flag = |key: &str| input[key].as_bool().unwrap_or(false);
        let policy = PathPolicy {
            allow_sharing: flag("allow_path_app_sharing"),
            allow_site_admin: flag("allow_path_app_site_owner_access"),
        };
        let who = text(input, "who");
        let visitor = Visitor {
            authenticated: who != "anonymous",
            owner: who == "owner",
            site_admin: who == "site_owner",
            member: who == "member_of_workspace_org",
        };
        let mut found = match access::decide(method, share, visitor, policy) {
            Access::Granted => json!({"status": 200}),
            Access::Hidden => json!({"status": 404}),
            Access::Login => json!({"status": 303}),
        };
        if found["status"] == 303 && expect.get("location_path").is_some() {
            found["location_path"] = json!(match method {
                access::Method::Path => "/login",
                access::Method::Subdomain => "/api/v2/applications/auth-redirect",
            });
        }
        Some(found)
    })
}

pub(super) fn app_stats(row: &Value) -> Ran {
    with(row, |input, _| {
        let usage = Usage::default();
        let mut open = Vec::new();
        for session in input["sessions"].as_array()? {
            let counter = usage.counter(Subject {
                user: None,
                workspace: Uuid::nil(),
                agent: Uuid::nil(),
                access_method: text(session, "access").into(),
                slug_or_port: text(session, "id").into(),
            });
            let visit = counter.begin_at(session["start_s"].as_u64()?);
            match session["end_s"].as_u64() {
                Some(end) => visit.end_at(end),
                None => open.push(visit),
            }
        }
        let every = input["flush_every_s"].as_u64()?;
        let mut reports = Vec::new();
        for flush in 1..=input["flushes"].as_u64()? {
            let mut stats = usage.collect(flush * every);
            stats.sort_by(|a, b| a.subject.slug_or_port.cmp(&b.subject.slug_or_port));
            let told = stats.iter().map(|stat| {
                json!({
                    "id": stat.subject.slug_or_port,
                    "start_s": stat.start,
                    "end_s": stat.end,
                    "requests": stat.requests,
                })
            });
            reports.extend(told);
        }
        Some(json!({ "reports": reports }))
    })
}
