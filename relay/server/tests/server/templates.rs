//! Templates and apps by the API.

use relay_server::{Definition, template};
use serde_json::{Value, json};

use crate::support::Plane;

const WEB: &str = r#"
resource "coder_agent" "main" {}
resource "coder_app" "site" {
  agent_id     = coder_agent.main.id
  slug         = "site"
  display_name = "The site"
  icon         = "/icon/site.svg"
  url          = "http://localhost:3000"
  subdomain    = true
  share        = "public"
  group        = "Tools"
  tooltip      = "*the* site"
  order        = 1
  healthcheck {
    url       = "http://localhost:3000/healthz"
    interval  = 5
    threshold = 6
  }
}
resource "coder_app" "port" {
  agent_id  = coder_agent.main.id
  slug      = "8080"
  url       = "http://localhost:8080"
  subdomain = true
  order     = 2
}
resource "coder_app" "path" {
  agent_id = coder_agent.main.id
  slug     = "path"
  url      = "http://localhost:8080"
  open_in  = "tab"
  hidden   = true
  order    = 3
}
"#;

#[tokio::test]
async fn apps_are_in_the_json_of_workspace_and_agent() {
    let plane = Plane::start().await;
    let store = plane.server.store();
    let definition = template::parse(WEB).unwrap();
    let template = store.add_template("web", &definition).await.unwrap();
    let alice = store.user_by_name("alice").await.unwrap().unwrap();
    let made = store
        .create_workspace_from(alice.id, "web", &template, &[])
        .await
        .unwrap();
    let get = async |path: String| {
        let (status, body) = plane.json("GET", &path, &plane.session, &Value::Null).await;
        assert_eq!(status, 200, "{path}");
        body
    };
    let workspace = get(format!("workspaces/{}", made.id)).await;
    assert_eq!(workspace["template_id"], json!(template.id));
    assert_eq!(workspace["template_name"], "web");
    let agent = &workspace["latest_build"]["resources"][0]["agents"][0];
    assert_eq!(agent["display_apps"], json!(["port_forwarding_helper"]));
    let apps = agent["apps"].as_array().unwrap();
    let mut site = apps[0].clone();
    assert!(site["id"].is_string());
    site["id"] = Value::Null;
    let expected = json!({
        "id": null, "slug": "site", "display_name": "The site", "icon": "/icon/site.svg",
        "url": "http://localhost:3000", "external": false, "subdomain": true,
        "subdomain_name": "site--web--alice", "sharing_level": "public",
        "healthcheck": {"url": "http://localhost:3000/healthz", "interval": 5, "threshold": 6},
        "health": "initializing", "hidden": false, "group": "Tools", "tooltip": "*the* site",
        "open_in": "slim-window", "statuses": [],
    });
    assert_eq!(site, expected);
    // What looks like a port is only told apart by its agent.
    assert_eq!(apps[1]["subdomain_name"], "8080--main--web--alice");
    assert_eq!(apps[1]["health"], "disabled");
    assert_eq!(apps[2]["open_in"], "tab");
    assert_eq!(apps[2]["hidden"], true);
    assert!(apps[2].get("subdomain_name").is_none());
    let alone = get(format!("workspaceagents/{}", made.agents[0].id)).await;
    assert_eq!(alone["apps"], agent["apps"]);
}

#[tokio::test]
async fn templates_are_seen_by_users_and_changed_by_administrators() {
    let plane = Plane::start().await;
    let store = plane.server.store();
    let template = store
        .add_template("web", &Definition::default())
        .await
        .unwrap();
    let path = format!("templates/{}", template.id);
    let get = async |path: &str| plane.json("GET", path, &plane.session, &Value::Null).await;
    let (status, found) = get(&path).await;
    assert_eq!(status, 200);
    assert_eq!(found["name"], "web");
    assert_eq!(found["max_port_share_level"], "public");
    assert_eq!(found["cors_behavior"], "simple");
    assert_eq!(get("templates").await, (200, json!([found])));
    let by_name = get("organizations/default/templates/web").await;
    assert_eq!(by_name, (200, found));
    assert_eq!(get("organizations/default/templates/x").await.0, 404);
    assert_eq!(get("templates/x").await.0, 404);
    let lower = json!({"max_port_share_level": "owner"});
    let refused = plane.json("PATCH", &path, &plane.session, &lower).await;
    assert_eq!(refused.0, 403);
    let root = plane.session_of("root", true).await;
    let (status, changed) = plane.json("PATCH", &path, &root, &lower).await;
    assert_eq!(status, 200);
    assert_eq!(changed["max_port_share_level"], "owner");
    assert_eq!(changed["cors_behavior"], "simple");
    let wrong = json!({"cors_behavior": "perhaps"});
    let (status, answer) = plane.json("PATCH", &path, &root, &wrong).await;
    assert_eq!(status, 400);
    assert_eq!(answer["validations"][0]["field"], "cors_behavior");
}
