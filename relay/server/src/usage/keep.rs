//! Stores what was counted, in batches, and forgets what is old.

use std::time::Duration;

use chrono::TimeDelta;
use tokio::time::Instant;

use super::{Usage, lock, now};
use crate::state::Shared;
use crate::store::{AppStat, Store};

/// Time between two looks.
const TICK: Duration = Duration::from_secs(2);
/// How often statistics are stored, and workspaces noted as used.
const FLUSH: Duration = Duration::from_secs(30);
const TOUCH: Duration = Duration::from_secs(10);
/// How often what is old is looked for, and how old it is.
const PRUNE: Duration = Duration::from_secs(3600);
const OLD: TimeDelta = TimeDelta::days(30);
/// Statistics that are held while the database fails.
const HELD: usize = 16_384;

/// Stores what is counted until the server stops.
pub(crate) async fn run(state: Shared) {
    let usage = &state.usage;
    let (mut flushed, mut touched) = (Instant::now(), Instant::now());
    let mut pruned: Option<Instant> = None;
    loop {
        tokio::time::sleep(TICK).await;
        if usage.store_log(&state.store).await {
            state.changed();
        }
        if touched.elapsed() >= TOUCH {
            touched = Instant::now();
            touch(&state).await;
        }
        if flushed.elapsed() >= FLUSH {
            flushed = Instant::now();
            usage.store_stats(&state.store, usage.collect(now())).await;
        }
        if pruned.is_none_or(|pruned| pruned.elapsed() >= PRUNE) {
            pruned = Some(Instant::now());
            prune(&state.store).await;
        }
    }
}

async fn touch(state: &Shared) {
    for workspace in state.usage.take_used() {
        if let Err(error) = state.store.touch_workspace(workspace).await {
            tracing::debug!(%error, "the use of a workspace was not noted");
        }
    }
}

async fn prune(store: &Store) {
    let before = crate::store::now() - OLD;
    let pruned = async {
        store.prune_app_stats(before).await?;
        store.prune_connections(before).await
    };
    if let Err(error) = pruned.await {
        tracing::warn!(%error, "old statistics were not deleted");
    }
}

impl Usage {
    /// Stores the new entries of the connection log; true when there were any. What is not stored
    /// stays, and an entry that is stored twice is one.
    async fn store_log(&self, store: &Store) -> bool {
        let entries = lock(&self.log).waiting();
        if entries.is_empty() {
            return false;
        }
        match store.add_connections(&entries).await {
            Ok(()) => lock(&self.log).stored(entries.len()),
            Err(error) => tracing::warn!(%error, "the connection log was not stored; trying again"),
        }
        true
    }

    /// Stores statistics; what the database does not take is kept for the next time.
    async fn store_stats(&self, store: &Store, new: Vec<AppStat>) {
        let stats = {
            let mut unstored = lock(&self.unstored);
            unstored.extend(new);
            let too_many = unstored.len().saturating_sub(HELD);
            unstored.drain(..too_many);
            unstored.clone()
        };
        if stats.is_empty() {
            return;
        }
        match store.add_app_stats(&stats).await {
            Ok(()) => drop(lock(&self.unstored).drain(..stats.len())),
            Err(error) => tracing::warn!(%error, "statistics were not stored; trying again"),
        }
    }

    /// Stores all that is left when the server stops.
    pub(crate) async fn store_rest(&self, store: &Store) {
        self.store_log(store).await;
        self.store_stats(store, self.finish()).await;
    }
}
