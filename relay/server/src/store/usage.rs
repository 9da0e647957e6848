//! Statistics of apps: written in batches, read as sums.

use chrono::{DateTime, Utc};
use sqlx::{QueryBuilder, Row};
use uuid::Uuid;

use super::{Store, time};
use crate::error::Result;
use crate::usage::Subject;

/// Rows of a batch; each statement has fewer variables than SQLite takes.
const BATCH: usize = 1024;
const ROWS: usize = 64;
/// Rows that are kept at all, newest first.
const KEPT: i64 = 500_000;

/// A row of the statistics. One of the same id takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppStat {
    /// Its id.
    pub id: String,
    /// Who used what.
    pub subject: Subject,
    /// Start, seconds since 1970.
    pub start: u64,
    /// End, or the moment of the report while it goes on.
    pub end: u64,
    /// Requests.
    pub requests: u64,
}

/// What an app or port was used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppUse {
    /// The agent's name.
    pub agent_name: String,
    /// `path` or `subdomain`.
    pub access_method: String,
    /// The app's slug, or a port with its `s`.
    pub slug_or_port: String,
    /// Requests.
    pub requests: i64,
    /// Length of all sessions together, seconds; short ones count as their minute.
    pub seconds: i64,
    /// Different users who were signed in.
    pub users: i64,
    /// When it was used last, to the minute.
    pub last_used_at: DateTime<Utc>,
}

fn micros(seconds: u64) -> i64 {
    i64::try_from(seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX)
}

impl Store {
    /// Stores statistics; of agents and workspaces that are gone meanwhile nothing is kept.
    pub async fn add_app_stats(&self, stats: &[AppStat]) -> Result<()> {
        for batch in stats.chunks(BATCH) {
            let mut transaction = self.begin().await?;
            for rows in batch.chunks(ROWS) {
                let mut query = QueryBuilder::new(
                    "WITH told (id, workspace_id, agent_id, user_id, access_method, slug_or_port, \
                     started, ended, requests) AS (",
                );
                query.push_values(rows, |mut row, stat| {
                    let Subject {
                        user,
                        workspace,
                        agent,
                        access_method,
                        slug_or_port,
                    } = &stat.subject;
                    row.push_bind(&stat.id)
                        .push_bind(workspace.to_string())
                        .push_bind(agent.to_string())
                        .push_bind(user.map(|user| user.to_string()))
                        .push_bind(access_method)
                        .push_bind(slug_or_port)
                        .push_bind(micros(stat.start))
                        .push_bind(micros(stat.end))
                        .push_bind(i64::try_from(stat.requests).unwrap_or(i64::MAX));
                });
                query.push(
                    ") INSERT INTO app_stats (id, workspace_id, agent_name, user_id, access_method, \
                     slug_or_port, session_started_at, session_ended_at, requests) \
                     SELECT told.id, agents.workspace_id, agents.name, told.user_id, \
                     told.access_method, told.slug_or_port, told.started, told.ended, told.requests \
                     FROM told JOIN agents ON agents.id = told.agent_id \
                     AND agents.workspace_id = told.workspace_id WHERE TRUE \
                     ON CONFLICT (id) DO UPDATE SET session_ended_at = excluded.session_ended_at, \
                     requests = excluded.requests",
                );
                query.build().execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
        }
        Ok(())
    }

    /// What the apps and ports of a workspace were used for since then, the latest first.
    pub async fn app_use(&self, workspace_id: Uuid, since: DateTime<Utc>) -> Result<Vec<AppUse>> {
        let rows = sqlx::query(
            "SELECT agent_name, access_method, slug_or_port, SUM(requests) AS requests, \
             SUM(session_ended_at - session_started_at) / 1000000 AS seconds, \
             COUNT(DISTINCT user_id) AS users, MAX(session_ended_at) AS last_used_at \
             FROM app_stats WHERE workspace_id = $1 AND session_ended_at >= $2 \
             GROUP BY agent_name, access_method, slug_or_port ORDER BY last_used_at DESC, 1, 2, 3",
        )
        .bind(workspace_id.to_string())
        .bind(since.timestamp_micros())
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(AppUse {
                    agent_name: row.try_get("agent_name")?,
                    access_method: row.try_get("access_method")?,
                    slug_or_port: row.try_get("slug_or_port")?,
                    requests: row.try_get("requests")?,
                    seconds: row.try_get("seconds")?,
                    users: row.try_get("users")?,
                    last_used_at: time(row, "last_used_at")?,
                })
            })
            .collect()
    }

    /// Forgets statistics from before then, and the oldest of too many.
    pub async fn prune_app_stats(&self, before: DateTime<Utc>) -> Result<()> {
        sqlx::query(
            "DELETE FROM app_stats WHERE session_ended_at < $1 OR session_ended_at < (SELECT \
             session_ended_at FROM app_stats ORDER BY session_ended_at DESC LIMIT 1 OFFSET $2)",
        )
        .bind(before.timestamp_micros())
        .bind(KEPT)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(id: usize, subject: &Subject, start: u64, end: u64) -> AppStat {
        AppStat {
            id: id.to_string(),
            subject: subject.clone(),
            start,
            end,
            requests: 2,
        }
    }

    #[tokio::test]
    async fn statistics_add_up_survive_builds_and_go_with_time_and_workspace() {
        let store = Store::in_memory().await.unwrap();
        let made = store.create_user("alice", "a@b.test", "password", false);
        let alice = made.await.unwrap().id;
        let names = ["main".to_owned()];
        let made = store.create_workspace(alice, "dev", &names).await.unwrap();
        let subject = Subject {
            user: Some(alice),
            workspace: made.id,
            agent: made.agents[0].id,
            access_method: "subdomain".into(),
            slug_or_port: "8080".into(),
        };
        let nobody = Subject {
            user: None,
            ..subject.clone()
        };
        let revision = store.revision().await.unwrap();
        let mut stats: Vec<_> = (0..2000).map(|id| stat(id, &subject, 600, 660)).collect();
        stats.push(stat(2000, &nobody, 0, 60));
        let gone = Subject {
            agent: Uuid::new_v4(),
            ..subject.clone()
        };
        stats.push(stat(2001, &gone, 0, 60));
        store.add_app_stats(&stats).await.unwrap();
        // A long session, told again.
        store
            .add_app_stats(&[stat(0, &subject, 600, 1200)])
            .await
            .unwrap();
        assert_eq!(
            store.revision().await.unwrap(),
            revision,
            "no news of rights"
        );
        let workspace = store.workspace(made.id).await.unwrap().unwrap();
        store.rebuild_workspace(&workspace).await.unwrap();
        let found = store.app_use(made.id, DateTime::UNIX_EPOCH).await.unwrap();
        let expected = AppUse {
            agent_name: "main".into(),
            access_method: "subdomain".into(),
            slug_or_port: "8080".into(),
            requests: 4002,
            seconds: 2000 * 60 + 600,
            users: 1,
            last_used_at: DateTime::from_timestamp(1200, 0).unwrap(),
        };
        assert_eq!(found, [expected]);
        let cut = DateTime::from_timestamp(700, 0).unwrap();
        store.prune_app_stats(cut).await.unwrap();
        let found = store.app_use(made.id, DateTime::UNIX_EPOCH).await.unwrap();
        assert_eq!(found[0].requests, 2);
        store.delete_workspace(made.id).await.unwrap();
        let found = store.app_use(made.id, DateTime::UNIX_EPOCH).await.unwrap();
        assert_eq!(found, []);
    }
}
