//! What the proxy keeps between requests, and how it is made worthless at once when something is
//! withdrawn.
//!
//! Everything that was read from the database carries the epoch in which it was read. A change of
//! the database, by whom ever, begins a new epoch, so rights of before are looked up again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use http::header::COOKIE;
use tokio::sync::watch;

use super::asked::Asked;
use super::limit::Limit;
use super::pool::Pool;
use super::right::{self, Right};
use super::target::{self, Target};
use crate::apps::cookies;
use crate::apps::identity::Identity;
use crate::error::Result;
use crate::store::{Session, Store};

/// Most look-ups of a kind that are kept.
const KEPT: usize = 4096;

/// What all requests to apps share.
pub(crate) struct Proxy {
    pub(super) pool: Pool,
    pub(super) limit: Limit,
    epoch: AtomicU64,
    /// Tells of new epochs.
    changed: watch::Sender<u64>,
    /// The revision of the database that the epoch stands for.
    revision: tokio::sync::Mutex<String>,
    lookups: Mutex<Lookups>,
}

#[derive(Default)]
struct Lookups {
    epoch: u64,
    targets: HashMap<Identity, Arc<Target>>,
    sessions: HashMap<String, Arc<Session>>,
}

impl Default for Proxy {
    fn default() -> Self {
        // Epochs of another run must not be met again.
        let start = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_micros() as u64);
        Self {
            pool: Pool::default(),
            limit: Limit::default(),
            epoch: AtomicU64::new(start),
            changed: watch::channel(start).0,
            revision: tokio::sync::Mutex::default(),
            lookups: Mutex::default(),
        }
    }
}

impl Proxy {
    /// The current epoch.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Begins a new epoch if the database changed. Whoever withdraws something waits for this
    /// before saying that it is done.
    pub(crate) async fn look_for_changes(&self, store: &Store) {
        let mut known = self.revision.lock().await;
        match store.revision().await {
            Ok(revision) if revision == *known => return,
            Ok(revision) => *known = revision,
            // Better to look everything up again than to miss something.
            Err(error) => tracing::warn!(%error, "the database cannot be looked at"),
        }
        let before = self.epoch.fetch_add(1, Ordering::AcqRel);
        self.changed.send_replace(before + 1);
    }

    /// Tells of new epochs from now on.
    pub(super) fn epochs(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lookups(&self, epoch: u64) -> MutexGuard<'_, Lookups> {
        let mut lookups = self.lookups.lock().unwrap_or_else(PoisonError::into_inner);
        if lookups.epoch < epoch {
            *lookups = Lookups {
                epoch,
                ..Lookups::default()
            };
        }
        lookups
    }

    /// The app that a request asks for.
    pub(super) async fn target(
        &self,
        store: &Store,
        asked: &Asked,
        epoch: u64,
    ) -> Result<Option<Arc<Target>>> {
        if let Some(target) = self.lookups(epoch).targets.get(&asked.identity) {
            return Ok(Some(Arc::clone(target)));
        }
        let Some(target) = target::find(store, asked).await?.map(Arc::new) else {
            return Ok(None);
        };
        let mut lookups = self.lookups(epoch);
        if lookups.epoch == epoch && lookups.targets.len() < KEPT {
            lookups
                .targets
                .insert(asked.identity.clone(), Arc::clone(&target));
        }
        Ok(Some(target))
    }

    /// The session of a token.
    pub(super) async fn session(
        &self,
        store: &Store,
        token: &str,
        epoch: u64,
    ) -> Result<Option<Arc<Session>>> {
        if let Some(session) = self.known(token, epoch) {
            return Ok(Some(session));
        }
        let found = store.session(token).await?;
        Ok(found.map(|session| self.keep(token, session, epoch)))
    }

    /// The session of a key's id, for connections that it opened.
    pub(super) async fn session_by_id(
        &self,
        store: &Store,
        id: &str,
        epoch: u64,
    ) -> Result<Option<Arc<Session>>> {
        // An id is no token, so both can be kept in one place.
        if let Some(session) = self.known(id, epoch) {
            return Ok(Some(session));
        }
        let found = store.session_by_id(id).await?;
        Ok(found.map(|session| self.keep(id, session, epoch)))
    }

    fn known(&self, key: &str, epoch: u64) -> Option<Arc<Session>> {
        let known = self.lookups(epoch).sessions.get(key).cloned();
        known.filter(|session| session.expires_at > crate::store::now())
    }

    fn keep(&self, key: &str, session: Session, epoch: u64) -> Arc<Session> {
        let session = Arc::new(session);
        let mut lookups = self.lookups(epoch);
        if lookups.epoch == epoch && lookups.sessions.len() < KEPT {
            lookups
                .sessions
                .insert(key.to_owned(), Arc::clone(&session));
        }
        session
    }
}

/// What a connection knows of its last request: most come with the same token again.
#[derive(Default)]
pub(crate) struct Memory(Mutex<Option<Recent>>);

struct Recent {
    identity: Identity,
    token: String,
    right: Arc<Right>,
}

impl Memory {
    /// The right of the last request, if this one brings the same token for the same app.
    pub(super) fn recall(
        &self,
        asked: &Asked,
        headers: &HeaderMap,
        epoch: u64,
    ) -> Option<Arc<Right>> {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = recent.as_ref()?;
        if recent.right.epoch != epoch || recent.identity != asked.identity {
            return None;
        }
        let mut tokens = headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| cookies::values(line, cookies::SIGNED_APP_TOKEN));
        let same = tokens.any(|token| token == recent.token);
        (same && recent.right.until > right::now()).then(|| Arc::clone(&recent.right))
    }

    /// Keeps a right for the next request.
    pub(super) fn note(&self, asked: &Asked, token: String, right: &Arc<Right>) {
        if token.is_empty() {
            return;
        }
        let recent = Recent {
            identity: asked.identity.clone(),
            token,
            right: Arc::clone(right),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(recent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_of_the_database_begins_an_epoch_and_nothing_else_does() {
        let store = Store::in_memory().await.unwrap();
        let proxy = Proxy::default();
        proxy.look_for_changes(&store).await;
        let before = proxy.epoch();
        proxy.look_for_changes(&store).await;
        assert_eq!(proxy.epoch(), before);
        let alice = store
            .create_user("alice", "a@b.test", "password", false)
            .await
            .unwrap();
        proxy.look_for_changes(&store).await;
        assert!(proxy.epoch() > before);
        let token = store.create_token(alice.id).await.unwrap();
        let before = proxy.epoch();
        assert!(
            proxy
                .session(&store, &token, before)
                .await
                .unwrap()
                .is_some()
        );
        store.delete_token(&token).await.unwrap();
        proxy.look_for_changes(&store).await;
        assert!(proxy.epoch() > before, "a session that ended is a change");
        let found = proxy.session(&store, &token, proxy.epoch()).await.unwrap();
        assert!(found.is_none());
    }
}
