//! Templates: what workspaces are made of, and what their owners may share.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::{App, Store, check_name, now, time, uuid};
use crate::apps::access::ShareLevel;
pub use crate::apps::cors::Behavior as CorsBehavior;
use crate::apps::ports::after_lowering;
use crate::error::{Error, Result};

/// A template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// The highest level at which ports of its workspaces are shared. Apps are not limited.
    pub max_share_level: ShareLevel,
    /// Who answers cross-origin requests to apps and ports of its workspaces.
    pub cors_behavior: CorsBehavior,
    /// When it was added.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// What a template's workspaces consist of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Names of the agents.
    pub agents: Vec<String>,
    /// The apps of all agents.
    pub apps: Vec<App>,
}

pub(super) const TEMPLATE_COLUMNS: &str = "templates.id AS template_id, \
     templates.name AS template_name, templates.max_share_level, templates.cors_behavior, \
     templates.created_at AS template_created_at, templates.updated_at AS template_updated_at";

pub(super) fn template(row: &SqliteRow) -> Result<Template> {
    let corrupt = || Error::Corrupt { what: "template" };
    let level: String = row.try_get("max_share_level")?;
    let cors: String = row.try_get("cors_behavior")?;
    Ok(Template {
        id: uuid(row, "template_id")?,
        name: row.try_get("template_name")?,
        max_share_level: level.parse().map_err(|_| corrupt())?,
        cors_behavior: cors.parse().map_err(|_| corrupt())?,
        created_at: time(row, "template_created_at")?,
        updated_at: time(row, "template_updated_at")?,
    })
}

impl Store {
    /// Adds a template that lets everything be shared. One of that name gets the new agents and
    /// apps instead and keeps its settings; its workspaces follow when they are rebuilt.
    pub async fn add_template(&self, name: &str, definition: &Definition) -> Result<Template> {
        check_name("template", name)?;
        for agent in &definition.agents {
            check_name("agent", agent)?;
        }
        let definition =
            serde_json::to_string(definition).map_err(|_| Error::Corrupt { what: "template" })?;
        let mut transaction = self.begin().await?;
        let statement = format!(
            "INSERT INTO templates \
             (id, name, max_share_level, cors_behavior, definition, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $6) ON CONFLICT (name) \
             DO UPDATE SET definition = excluded.definition, updated_at = excluded.updated_at \
             RETURNING {}",
            TEMPLATE_COLUMNS.replace("templates.", "")
        );
        let row = sqlx::query(&statement)
            .bind(Uuid::new_v4().to_string())
            .bind(name)
            .bind(ShareLevel::Public.as_str())
            .bind(CorsBehavior::default().as_str())
            .bind(definition)
            .bind(now().timestamp_micros())
            .fetch_one(&mut *transaction)
            .await?;
        let added = template(&row)?;
        Self::bump(&mut transaction).await?;
        transaction.commit().await?;
        Ok(added)
    }

    /// All templates, by name.
    pub async fn templates(&self) -> Result<Vec<Template>> {
        let statement = format!("SELECT {TEMPLATE_COLUMNS} FROM templates ORDER BY name");
        let rows = sqlx::query(&statement).fetch_all(&self.pool).await?;
        rows.iter().map(template).collect()
    }

    /// The template of that name.
    pub async fn template_by_name(&self, name: &str) -> Result<Option<Template>> {
        self.find_template("name", name).await
    }

    /// The template of that id.
    pub async fn template(&self, id: Uuid) -> Result<Option<Template>> {
        self.find_template("id", &id.to_string()).await
    }

    async fn find_template(&self, column: &str, value: &str) -> Result<Option<Template>> {
        let statement = format!("SELECT {TEMPLATE_COLUMNS} FROM templates WHERE {column} = $1");
        let row = sqlx::query(&statement)
            .bind(value)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(template).transpose()
    }

    /// What the workspaces of a template consist of.
    pub async fn definition(&self, template_id: Uuid) -> Result<Definition> {
        let row = sqlx::query("SELECT definition FROM templates WHERE id = $1")
            .bind(template_id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else {
            return Ok(Definition::default());
        };
        serde_json::from_str(row.try_get(0)?).map_err(|_| Error::Corrupt { what: "template" })
    }

    /// Changes what is given of a template's settings. A lower maximum takes shares along, as far
    /// as it lowers or deletes them.
    pub async fn set_template(
        &self,
        id: Uuid,
        max_share_level: Option<ShareLevel>,
        cors_behavior: Option<CorsBehavior>,
    ) -> Result<()> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "UPDATE templates SET max_share_level = COALESCE($2, max_share_level), \
             cors_behavior = COALESCE($3, cors_behavior), updated_at = $4 WHERE id = $1",
        )
        .bind(id.to_string())
        .bind(max_share_level.map(ShareLevel::as_str))
        .bind(cors_behavior.map(CorsBehavior::as_str))
        .bind(now().timestamp_micros())
        .execute(&mut *transaction)
        .await?;
        if let Some(maximum) = max_share_level {
            lower_shares(&mut transaction, id, maximum).await?;
        }
        Self::bump(&mut transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Deletes a template that no workspace uses.
    pub async fn delete_template(&self, template: &Template) -> Result<()> {
        let mut transaction = self.begin().await?;
        let workspaces = users_of(&mut transaction, template.id).await?;
        if !workspaces.is_empty() {
            return Err(Error::TemplateInUse {
                template: template.name.clone(),
                workspaces,
            });
        }
        sqlx::query("DELETE FROM templates WHERE id = $1")
            .bind(template.id.to_string())
            .execute(&mut *transaction)
            .await?;
        Self::bump(&mut transaction).await?;
        transaction.commit().await?;
        Ok(())
    }
}

/// Workspaces that are named when a template cannot go.
const NAMED: usize = 8;

/// The workspaces of a template, as a list for people; empty when there are none.
async fn users_of(
    transaction: &mut sqlx::Transaction<'_, sqlx::Sqlite>,
    template_id: Uuid,
) -> Result<String> {
    let rows = sqlx::query(
        "SELECT users.username || '/' || workspaces.name FROM workspaces \
         JOIN users ON users.id = workspaces.owner_id WHERE workspaces.template_id = $1 \
         ORDER BY users.username, workspaces.name",
    )
    .bind(template_id.to_string())
    .fetch_all(&mut **transaction)
    .await?;
    let mut names = Vec::new();
    for row in rows.iter().take(NAMED) {
        names.push(row.try_get::<String, _>(0)?);
    }
    let list = names.join(", ");
    Ok(match rows.len().saturating_sub(NAMED) {
        0 => list,
        more => format!("{list} and {more} more"),
    })
}

async fn lower_shares(
    transaction: &mut sqlx::Transaction<'_, sqlx::Sqlite>,
    template_id: Uuid,
    maximum: ShareLevel,
) -> Result<()> {
    const OF_TEMPLATE: &str = "share_level = $2 AND workspace_id IN \
         (SELECT id FROM workspaces WHERE template_id = $1)";
    let above = [
        ShareLevel::Organization,
        ShareLevel::Authenticated,
        ShareLevel::Public,
    ];
    for level in above {
        let after = after_lowering(level, maximum);
        let statement = match after {
            Some(after) if after == level => continue,
            Some(_) => format!("UPDATE port_shares SET share_level = $3 WHERE {OF_TEMPLATE}"),
            None => format!("DELETE FROM port_shares WHERE {OF_TEMPLATE}"),
        };
        let mut query = sqlx::query(&statement)
            .bind(template_id.to_string())
            .bind(level.as_str());
        if let Some(after) = after {
            query = query.bind(after.as_str());
        }
        query.execute(&mut **transaction).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::hostname::Protocol;
    use crate::apps::ports::Share;

    fn definition(slugs: &[&str]) -> Definition {
        let apps = slugs.iter().map(|slug| App {
            agent: "main".into(),
            slug: (*slug).into(),
            ..App::default()
        });
        Definition {
            agents: vec!["main".into()],
            apps: apps.collect(),
        }
    }

    async fn alice(store: &Store) -> Uuid {
        let made = store.create_user("alice", "a@b.test", "password", false);
        made.await.unwrap().id
    }

    #[tokio::test]
    async fn adding_again_changes_the_definition_and_keeps_the_settings() {
        let store = Store::in_memory().await.unwrap();
        let first = store
            .add_template("web", &definition(&["a"]))
            .await
            .unwrap();
        assert_eq!(first.max_share_level, ShareLevel::Public);
        assert_eq!(first.cors_behavior, CorsBehavior::Simple);
        let passthru = Some(CorsBehavior::Passthru);
        store.set_template(first.id, None, passthru).await.unwrap();
        let before = store.revision().await.unwrap();
        let second = store
            .add_template("web", &definition(&["b"]))
            .await
            .unwrap();
        assert_ne!(store.revision().await.unwrap(), before);
        assert_eq!(second.id, first.id);
        assert_eq!(second.cors_behavior, CorsBehavior::Passthru);
        assert_eq!(second.max_share_level, ShareLevel::Public);
        let stored = store.definition(first.id).await.unwrap();
        assert_eq!(stored, definition(&["b"]));
        assert_eq!(store.templates().await.unwrap(), vec![second.clone()]);
        assert_eq!(
            store.template_by_name("web").await.unwrap(),
            Some(second.clone())
        );
        assert_eq!(store.template(second.id).await.unwrap(), Some(second));
        assert_eq!(store.template_by_name("other").await.unwrap(), None);
        assert!(store.add_template("a b", &definition(&[])).await.is_err());
    }

    #[tokio::test]
    async fn a_template_goes_only_when_no_workspace_uses_it() {
        let store = Store::in_memory().await.unwrap();
        let owner = alice(&store).await;
        let template = store.add_template("web", &definition(&[])).await.unwrap();
        let mut made = Vec::new();
        for number in 0..10 {
            let name = format!("w{number}");
            let workspace = store.create_workspace_from(owner, &name, &template, &[]);
            made.push(workspace.await.unwrap().id);
        }
        let error = store.delete_template(&template).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("alice/w0, alice/w1, "), "{text}");
        assert!(text.contains("alice/w7 and 2 more"), "{text}");
        for id in made {
            assert!(store.delete_template(&template).await.is_err());
            store.delete_workspace(id).await.unwrap();
        }
        let before = store.revision().await.unwrap();
        store.delete_template(&template).await.unwrap();
        assert_ne!(store.revision().await.unwrap(), before);
        assert_eq!(store.templates().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_workspace_has_the_apps_of_its_template_and_new_ones_after_a_rebuild() {
        let store = Store::in_memory().await.unwrap();
        let owner = alice(&store).await;
        let template = store
            .add_template("web", &definition(&["a"]))
            .await
            .unwrap();
        let made = store
            .create_workspace_from(owner, "dev", &template, &[])
            .await
            .unwrap();
        let workspace = store.workspace(made.id).await.unwrap().unwrap();
        assert_eq!(workspace.template, Some(template.clone()));
        let mut next = definition(&["b"]);
        next.agents.push("gpu".into());
        store.add_template("web", &next).await.unwrap();
        let apps = store.apps_of_agent(made.agents[0].id).await.unwrap();
        assert_eq!(apps[0].0.slug, "a");
        let again = store.rebuild_workspace(&workspace).await.unwrap();
        let names: Vec<_> = again.agents.iter().map(|agent| &agent.name).collect();
        assert_eq!(names, ["main", "gpu"]);
        let apps = store.apps_of_agent(again.agents[0].id).await.unwrap();
        assert_eq!(apps[0].0.slug, "b");
        assert!(
            store
                .apps_of_agent(made.agents[0].id)
                .await
                .unwrap()
                .is_empty()
        );
    }

    #[tokio::test]
    async fn apps_follow_the_only_agent_and_ask_for_theirs_among_several() {
        let store = Store::in_memory().await.unwrap();
        let owner = alice(&store).await;
        let template = store
            .add_template("web", &definition(&["a"]))
            .await
            .unwrap();
        let one = ["box".to_owned()];
        let made = store
            .create_workspace_from(owner, "dev", &template, &one)
            .await
            .unwrap();
        let apps = store.apps_of_agent(made.agents[0].id).await.unwrap();
        assert_eq!((apps.len(), apps[0].0.agent.as_str()), (1, "box"));
        let workspace = store.workspace(made.id).await.unwrap().unwrap();
        let again = store.rebuild_workspace(&workspace).await.unwrap();
        assert_eq!(again.agents[0].name, "box");
        let two = ["box".to_owned(), "gpu".to_owned()];
        let refused = store
            .create_workspace_from(owner, "two", &template, &two)
            .await;
        let message = refused.unwrap_err().to_string();
        assert!(
            message.contains("main") && message.contains("a"),
            "{message}"
        );
        assert!(
            store
                .workspace_by_name(owner, "two")
                .await
                .unwrap()
                .is_none()
        );
    }

    #[tokio::test]
    async fn a_lower_maximum_lowers_or_deletes_shares_of_its_own_workspaces() {
        let store = Store::in_memory().await.unwrap();
        let owner = alice(&store).await;
        let template = store.add_template("web", &definition(&[])).await.unwrap();
        let own = store
            .create_workspace_from(owner, "own", &template, &[])
            .await
            .unwrap()
            .id;
        let other = store
            .create_workspace(owner, "other", &["main".to_owned()])
            .await
            .unwrap()
            .id;
        let levels = [
            ShareLevel::Organization,
            ShareLevel::Authenticated,
            ShareLevel::Public,
        ];
        for (port, level) in (9..).zip(levels) {
            let share = Share {
                agent_name: "main".into(),
                port,
                level,
                protocol: Protocol::Http,
            };
            store.put_share(own, &share).await.unwrap();
            store.put_share(other, &share).await.unwrap();
        }
        let found = async |id| {
            let shares = store.shares(id).await.unwrap();
            let levels: Vec<_> = shares.iter().map(|share| share.level).collect();
            levels
        };
        let lower = async |level| {
            let done = store.set_template(template.id, Some(level), None);
            done.await.unwrap();
        };
        lower(ShareLevel::Organization).await;
        assert_eq!(found(own).await, levels);
        lower(ShareLevel::Authenticated).await;
        let (organization, authenticated) = (ShareLevel::Organization, ShareLevel::Authenticated);
        assert_eq!(
            found(own).await,
            [organization, authenticated, authenticated]
        );
        lower(ShareLevel::Owner).await;
        assert_eq!(found(own).await, []);
        assert_eq!(found(other).await, levels);
        let workspace = store.workspace(own).await.unwrap().unwrap();
        assert_eq!(workspace.max_share_level(), ShareLevel::Owner);
        let workspace = store.workspace(other).await.unwrap().unwrap();
        assert_eq!(workspace.max_share_level(), ShareLevel::Public);
        assert_eq!(workspace.cors_behavior(), CorsBehavior::Simple);
    }
}
