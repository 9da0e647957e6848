//! Sharing ports: the rules by themselves, and requests to a server that each row starts.

use relay_server::apps::access::ShareLevel;
use relay_server::apps::hostname::Protocol;
use relay_server::apps::ports::{self, Share, ShareError, ShareRequest};
use relay_server::{Config, Definition, Server, StunAddress};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::{Ran, equals, text};

pub(super) fn port_share_api(row: &Value) -> Ran {
    let input = &row["input"];
    let runtime = Runtime::new().expect("a runtime");
    if !input["new_max"].is_null() {
        return equals(&runtime.block_on(lowered(input)), row);
    }
    let found = runtime.block_on(async {
        let plane = Plane::start(input).await;
        let found = match input["sequence"].as_array() {
            Some(steps) => sequence(&plane, steps).await,
            None => request(&plane, input).await,
        };
        plane.server.shutdown().await;
        found
    });
    equals(&found, row)
}

fn level(value: &Value) -> ShareLevel {
    let text = value.as_str().expect("as the row says");
    text.parse().expect("as the row says")
}

/// The levels of stored shares after the maximum was lowered.
async fn lowered(input: &Value) -> Value {
    let plane = Plane::start(&json!({ "template_max": input["old_max"] })).await;
    let store = plane.server.store();
    let levels = input["shares"].as_array().expect("as the row says");
    for (port, asked) in (9..).zip(levels) {
        let share = Share {
            agent_name: "main".into(),
            port,
            level: level(asked),
            protocol: Protocol::Http,
        };
        let put = store.put_share(plane.workspace, &share);
        put.await.expect("a stored share");
    }
    let maximum = level(&input["new_max"]);
    let set = store.set_template(plane.template, Some(maximum), None);
    set.await.expect("a stored maximum");
    let after = store.shares(plane.workspace).await.expect("the shares");
    for share in &after {
        // Whatever is stored, no request sees more than the maximum.
        assert!(ports::effective(share.level, maximum) <= maximum);
    }
    plane.server.shutdown().await;
    let after: Vec<_> = after.iter().map(|share| share.level.as_str()).collect();
    json!({ "shares_after": after })
}

/// The ports that the last step of a sequence lists.
async fn sequence(plane: &Plane, steps: &[Value]) -> Value {
    let mut last = Value::Null;
    for step in steps {
        let (method, body) = step
            .as_object()
            .and_then(|step| step.iter().next())
            .expect("a step");
        let (status, answer) = plane.send(method, body).await;
        assert_eq!(status, 200, "{step}");
        last = answer;
    }
    let shares = last["shares"].as_array().expect("a list of shares");
    let ports: Vec<_> = shares.iter().map(|share| &share["port"]).collect();
    json!({ "ports_in_order": ports })
}

/// One request; a refusal is named by the rule, which knows which one it was.
async fn request(plane: &Plane, input: &Value) -> Value {
    let (method, body) = (text(input, "method"), &input["body"]);
    if input["exists"] == true {
        let mut shared = body.clone();
        shared["share_level"] = json!("public");
        shared["protocol"] = json!("http");
        assert_eq!(plane.send("POST", &shared).await.0, 200);
    }
    let (status, mut answer) = plane.send(method, body).await;
    if status == 200 && method == "POST" {
        assert_eq!(answer["workspace_id"], json!(plane.workspace));
        answer["workspace_id"] = json!("<uuid>");
        let (_, listed) = plane.send("GET", &Value::Null).await;
        assert_eq!(listed["shares"][0]["port"], body["port"]);
        return json!({ "status": status, "body": answer });
    }
    if status == 200 {
        assert_eq!(plane.send(method, body).await.0, 404);
        return json!({ "status": status });
    }
    let rule: ShareRequest = serde_json::from_value(body.clone()).expect("as the row says");
    let exists = input["agent_exists"] == true;
    let refused = rule.check(level(&input["template_max"]), |_| exists);
    let error = refused.expect_err("the rule agrees with the server");
    assert_eq!(answer["validations"][0]["field"], error.field());
    json!({"status": status, "error": match error {
        ShareError::Level(_) => "level_not_allowed",
        ShareError::Port(_) => "port_range",
        ShareError::Protocol(_) => "protocol_not_allowed",
        ShareError::AboveMaximum { .. } => "above_max_level",
        ShareError::NoAgent(_) => "agent_not_found",
    }})
}

/// A server with a workspace whose agent is `main`.
struct Plane {
    server: Server,
    template: Uuid,
    workspace: Uuid,
    session: String,
    _data: TempDir,
}

impl Plane {
    async fn start(input: &Value) -> Self {
        let data = TempDir::new().expect("a directory");
        let address = "127.0.0.1:0".parse().expect("an address");
        let config = Config {
            stun: StunAddress::Off,
            ..Config::new(address, data.path().join("data"))
        };
        let server = Server::start(config).await.expect("a server");
        let store = server.store();
        let alice = store.create_user("alice", "alice@example.com", "correct-horse-7", false);
        let alice = alice.await.expect("a user").id;
        let empty = Definition::default();
        let template = store.add_template("web", &empty);
        let template = template.await.expect("a template");
        let maximum = &input["template_max"];
        if !maximum.is_null() {
            let set = store.set_template(template.id, Some(level(maximum)), None);
            set.await.expect("a stored maximum");
        }
        let workspace = store.create_workspace_from(alice, "dev", &template, &[]);
        let workspace = workspace.await.expect("a workspace").id;
        let session = store.create_token(alice).await.expect("a session");
        Self {
            template: template.id,
            workspace,
            session,
            server,
            _data: data,
        }
    }

    async fn send(&self, method: &str, body: &Value) -> (u16, Value) {
        let (workspace, session, body) = (self.workspace, &self.session, body.to_string());
        let request = format!(
            "{method} /api/v2/workspaces/{workspace}/port-share HTTP/1.1\r\nHost: relay\r\n\
             Connection: close\r\nCoder-Session-Token: {session}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let stream = TcpStream::connect(self.server.local_addr()).await;
        let mut stream = stream.expect("a connection");
        let sent = stream.write_all(request.as_bytes()).await;
        sent.expect("the request leaves");
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer).await;
        read.expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        (
            status.expect("a status"),
            serde_json::from_str(body).unwrap_or_default(),
        )
    }
}
