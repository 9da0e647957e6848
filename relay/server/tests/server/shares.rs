//! Sharing ports by the API.

use relay_server::apps::access::ShareLevel;
use relay_server::{Definition, Transition};
use serde_json::{Value, json};

use crate::support::Plane;

fn body(port: i64, level: &str) -> Value {
    json!({"agent_name": "main", "port": port, "share_level": level, "protocol": "http"})
}

impl Plane {
    async fn share(&self, method: &str, body: &Value) -> (u16, Value) {
        let path = format!("workspaces/{}/port-share", self.workspace.id);
        self.json(method, &path, &self.session, body).await
    }
}

#[tokio::test]
async fn ports_are_shared_listed_changed_and_withdrawn() {
    let plane = Plane::start().await;
    let (status, first) = plane.share("POST", &body(9000, "public")).await;
    assert_eq!(status, 200);
    let id = plane.workspace.id;
    assert_eq!(
        first,
        json!({"workspace_id": id, "agent_name": "main", "port": 9000,
               "share_level": "public", "protocol": "http"})
    );
    assert_eq!(plane.share("POST", &body(80, "organization")).await.0, 200);
    assert_eq!(
        plane.share("POST", &body(9000, "authenticated")).await.0,
        200
    );
    let (status, listed) = plane.share("GET", &Value::Null).await;
    assert_eq!(status, 200);
    let listed = listed["shares"].as_array().unwrap();
    let ports: Vec<_> = listed
        .iter()
        .map(|share| {
            (
                share["port"].as_u64().unwrap(),
                share["share_level"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(ports, [(80, "organization"), (9000, "authenticated")]);
    for (asked, status) in [
        (json!({"agent_name": "main", "port": 80}), 200),
        (json!({"agent_name": "main", "port": 80}), 404),
        (json!({"agent_name": "gpu", "port": 9000}), 404),
        (json!({"agent_name": "main", "port": 99_999}), 404),
        (json!({"agent_name": "main", "port": "x"}), 400),
    ] {
        assert_eq!(plane.share("DELETE", &asked).await.0, status, "{asked}");
    }
}

#[tokio::test]
async fn what_may_not_be_shared_is_refused_with_the_field() {
    let plane = Plane::start().await;
    let with = |field: &str, value: Value| {
        let mut body = body(8080, "public");
        body[field] = value;
        body
    };
    for (field, value) in [
        ("share_level", json!("owner")),
        ("share_level", json!("everybody")),
        ("port", json!(8)),
        ("port", json!(65_536)),
        ("port", json!(-1)),
        ("protocol", json!("")),
        ("protocol", json!("ftp")),
        ("agent_name", json!("nope")),
    ] {
        let (status, answer) = plane.share("POST", &with(field, value.clone())).await;
        assert_eq!(status, 400, "{field} {value}: {answer}");
        assert_eq!(answer["validations"][0]["field"], field, "{answer}");
    }
    assert_eq!(plane.share("POST", &Value::Null).await.0, 400);
    let (_, listed) = plane.share("GET", &Value::Null).await;
    assert_eq!(listed, json!({"shares": []}));
}

#[tokio::test]
async fn only_the_owner_and_administrators_reach_the_shares() {
    let plane = Plane::start().await;
    let path = format!("workspaces/{}/port-share", plane.workspace.id);
    let bob = plane.session_of("bob", false).await;
    let root = plane.session_of("root", true).await;
    for (token, expected) in [(&bob[..], 404), ("", 401), (&root[..], 200)] {
        for method in ["POST", "GET", "DELETE"] {
            let body = body(8080, "public");
            let (status, _) = plane.json(method, &path, token, &body).await;
            assert_eq!(status, expected, "{method}");
        }
    }
}

#[tokio::test]
async fn the_templates_maximum_binds_at_once_and_survives_builds() {
    let mut plane = Plane::start().await;
    let store = plane.server.store().clone();
    let template = store
        .add_template("web", &Definition::default())
        .await
        .unwrap();
    let alice = store.user_by_name("alice").await.unwrap().unwrap();
    plane.workspace = store
        .create_workspace_from(alice.id, "web", &template, &[])
        .await
        .unwrap();
    assert_eq!(plane.share("POST", &body(9, "public")).await.0, 200);
    let maximum = Some(ShareLevel::Authenticated);
    store
        .set_template(template.id, maximum, None)
        .await
        .unwrap();
    let (status, answer) = plane.share("POST", &body(10, "public")).await;
    assert_eq!(status, 400);
    assert_eq!(answer["validations"][0]["field"], "share_level");
    let (_, listed) = plane.share("GET", &Value::Null).await;
    assert_eq!(listed["shares"][0]["share_level"], "authenticated");
    let workspace = store.workspace(plane.workspace.id).await.unwrap().unwrap();
    assert_eq!(workspace.build.transition, Transition::Start);
    store.rebuild_workspace(&workspace).await.unwrap();
    let (_, after) = plane.share("GET", &Value::Null).await;
    assert_eq!(after, listed);
}
