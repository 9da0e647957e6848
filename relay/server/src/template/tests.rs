use super::*;
use crate::store::{HealthCheck, OpenIn};

const WHOLE: &str = r#"
terraform {
  required_providers { coder = { source = "coder/coder" } }
}
data "coder_workspace" "me" {}
locals { user = lower(data.coder_workspace.me.owner) }

resource "coder_agent" "main" {
  os             = "linux"
  arch           = data.coder_provisioner.me.arch
  startup_script = <<-EOT
    echo ${local.user}
  EOT
}
resource "coder_agent" "gpu" {}

resource "coder_app" "web" {
  agent_id     = coder_agent.main.id
  slug         = "web"
  display_name = "The web"
  icon         = "/icon/web.svg"
  url          = "http://localhost:3000/path?query"
  subdomain    = true
  share        = "authenticated"
  order        = 2
  group        = "Tools"
  hidden       = "true"
  open_in      = "tab"
  tooltip      = <<EOT
Two
lines
EOT
  healthcheck {
    url       = "http://localhost:3000/healthz"
    interval  = 5
    threshold = "6"
  }
  lifecycle { ignore_changes = all }
}

resource "coder_app" "shell" {
  count    = data.coder_workspace.me.start_count
  agent_id = resource.coder_agent.gpu[0].id
  slug     = "shell"
  command  = "htop"
  order    = -1
  share    = null
}

resource "coder_app" "docs" {
  agent_id = "${coder_agent.main.id}"
  slug     = "docs"
  external = true
  url      = "vscode://coder.coder-remote/open?token=$SESSION_TOKEN"
}

resource "coder_app" "never" {
  count    = 0
  agent_id = coder_agent.main.id
  slug     = "web"
}
"#;

#[test]
fn agents_and_apps_are_read_and_the_rest_left_alone() {
    let found = parse(WHOLE).unwrap();
    assert_eq!(found.agents, ["main", "gpu"]);
    let web = App {
        agent: "main".into(),
        slug: "web".into(),
        display_name: "The web".into(),
        icon: "/icon/web.svg".into(),
        url: "http://localhost:3000/path?query".into(),
        subdomain: true,
        share: ShareLevel::Authenticated,
        healthcheck: Some(HealthCheck {
            url: "http://localhost:3000/healthz".into(),
            interval: 5,
            threshold: 6,
        }),
        order: 2,
        group: "Tools".into(),
        hidden: true,
        tooltip: "Two\nlines\n".into(),
        open_in: OpenIn::Tab,
        ..App::default()
    };
    let shell = App {
        agent: "gpu".into(),
        slug: "shell".into(),
        display_name: "shell".into(),
        command: "htop".into(),
        order: -1,
        ..App::default()
    };
    let docs = App {
        agent: "main".into(),
        slug: "docs".into(),
        display_name: "docs".into(),
        external: true,
        url: "vscode://coder.coder-remote/open?token=$SESSION_TOKEN".into(),
        ..App::default()
    };
    assert_eq!(found.apps, [web, shell, docs]);
}

#[test]
fn a_file_without_agents_has_those_that_its_apps_name() {
    let text = r#"
        resource "coder_app" "a" {
          agent_id = coder_agent.dev.id
          slug     = "a"
          url      = "http://localhost:1"
        }
        resource "coder_app" "b" {
          agent_id = "box"
          slug     = "b"
          url      = "https://localhost:1"
        }"#;
    assert_eq!(parse(text).unwrap().agents, ["dev", "box"]);
    assert_eq!(parse("").unwrap(), Definition::default());
}

/// An app with these lines more, from line 5 on.
fn app(lines: &str) -> String {
    format!(
        "resource \"coder_agent\" \"main\" {{}}\nresource \"coder_app\" \"a\" {{\n  \
         agent_id = coder_agent.main.id\n  slug = \"a\"\n{lines}\n}}\n"
    )
}

#[test]
fn a_mistake_is_told_with_its_line() {
    let url = "url = \"http://localhost:1\"";
    for (lines, line, words) in [
        (
            "url = \"http://localhost:${var.port}\"",
            5,
            "url is not a literal",
        ),
        ("url = local.url", 5, "url is not a literal"),
        ("url = format(\"http://%s\", 1)", 5, "url is not a literal"),
        (
            "\n\nurl = [\"http://localhost\"]",
            7,
            "url must be a single value",
        ),
        ("url = \"localhost:3000\"", 5, "http://localhost:3000"),
        ("url = \"ftp://localhost\"", 5, "http://localhost:3000"),
        ("", 2, "no url"),
        (
            &format!("{url}\nsubdomain = \"perhaps\""),
            6,
            "subdomain must be true or false",
        ),
        (
            &format!("{url}\nshare = \"organization\""),
            6,
            "owner, authenticated and public",
        ),
        (
            &format!("{url}\nopen_in = \"window\""),
            6,
            "slim-window and tab",
        ),
        (
            &format!("{url}\norder = 1.5"),
            6,
            "order must be a whole number",
        ),
        (
            &format!("{url}\nhidden = var.x"),
            6,
            "hidden is not a literal",
        ),
        (
            &format!("{url}\nsub_domain = true"),
            6,
            "no attribute \"sub_domain\"",
        ),
        (
            &format!("{url}\ndynamic \"healthcheck\" {{}}"),
            6,
            "no block \"dynamic\"",
        ),
        (
            &format!("{url}\nhealthcheck {{\nurl = 1\n}}"),
            7,
            "http://localhost:3000",
        ),
        (
            &format!("{url}\nhealthcheck {{\n{url}\ninterval = 1\n}}"),
            6,
            "no threshold",
        ),
        (
            &format!("{url}\nhealthcheck {{\n{url}\ninterval = -1\nthreshold = 1\n}}"),
            8,
            "interval must be",
        ),
        (
            &format!("{url}\nhealthcheck {{}}\nhealthcheck {{}}"),
            7,
            "healthcheck is there twice",
        ),
        (&format!("{url}\ncommand = \"x\""), 5, "command and url"),
        (
            "command = \"x\"\nsubdomain = false",
            6,
            "command and subdomain",
        ),
        (
            "command = \"x\"\nhealthcheck {}",
            6,
            "command and healthcheck",
        ),
        (
            &format!("{url}\nexternal = true\nshare = \"public\""),
            7,
            "external and share",
        ),
        (
            &format!("{url}\nexternal = true\nhealthcheck {{}}"),
            7,
            "external and healthcheck",
        ),
        (
            "external = true\nurl = \"javascript:alert(1)\"",
            6,
            "https://example.com/",
        ),
        (&format!("{url}\ncount = 2"), 6, "count makes"),
        (&format!("{url}\ncount = var.n"), 6, "count makes"),
        (&format!("{url}\nfor_each = toset([])"), 6, "for_each makes"),
        (
            &format!("{url}\ngroup = \"{}\"", "x".repeat(65)),
            6,
            "65 characters",
        ),
        (
            &format!("{url}\ntooltip = \"{}\"", "x".repeat(2049)),
            6,
            "2049 characters",
        ),
        (
            &format!("{url}\ndisplay_name = \"{}\"", "x".repeat(65)),
            6,
            "65 characters",
        ),
    ] {
        let error = parse(&app(lines)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(words), "{lines}: {text}");
        assert_eq!(error.line, line, "{lines}: {text}");
        assert!(!text.contains('\n'), "{text}");
    }
    let long = format!("{url}\nexternal = false\nshare = \"public\"");
    assert!(parse(&app(&long)).is_ok());
}

#[test]
fn slugs_and_agents_are_checked() {
    let of = |agents: &str, agent_id: &str, slug: &str| {
        let text = format!(
            "{agents}\nresource \"coder_app\" \"a\" {{\n  agent_id = {agent_id}\n  \
             slug = \"{slug}\"\n  url = \"http://localhost:1\"\n}}\n"
        );
        (parse(&text), text)
    };
    let main = "resource \"coder_agent\" \"main\" {}";
    let id = "coder_agent.main.id";
    for slug in ["Web", "a--b", "-a", "a_b", "", "a.b"] {
        let error = of(main, id, slug).0.unwrap_err();
        assert_eq!(error.line, 4, "{slug}: {error}");
    }
    for agent_id in [
        "coder_agent.other.id",
        "coder_agent.main.token",
        "data.x.y.id",
        "coder_agent.main[*].id",
        "\"other\"",
        "[]",
    ] {
        let error = of(main, agent_id, "a").0.unwrap_err();
        assert_eq!(
            (error.line, &error.problem),
            (3, &Problem::Agent),
            "{agent_id}"
        );
    }
    let error = of("resource \"coder_agent\" \"my_box\" {}", id, "a").0;
    assert!(error.unwrap_err().to_string().contains("my_box"));
    let error = of(
        &format!("{main}\n{}", main.replace("main", "Main")),
        id,
        "a",
    )
    .0;
    assert_eq!(error.unwrap_err().line, 2);
    let (_, once) = of(main, id, "a");
    let second = of("", id, "a").1;
    let error = parse(&format!("{once}{second}")).unwrap_err();
    assert_eq!(
        (error.line, error.to_string().contains("twice")),
        (10, true)
    );
}

#[test]
fn what_is_not_the_language_is_said_to_be_so() {
    for (text, line) in [
        ("resource {", 1),
        ("\n\n{\"json\": true}", 3),
        ("a = \n", 1),
    ] {
        let error = parse(text).unwrap_err();
        assert!(matches!(error.problem, Problem::Syntax(_)), "{error}");
        assert_eq!(error.line, line, "{text:?}: {error}");
    }
    let deep = format!("a = {}", "(".repeat(100_000));
    assert!(parse(&deep).is_err());
}
