//! Resume tokens: a client that connects again keeps its peer id, also after a restart of the server.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::hmac;
use uuid::Uuid;

/// Life of a token, in seconds.
pub(crate) const LIFE: i64 = 24 * 3600;
const ID: usize = 16;
const SIGNED: usize = 3 * ID + 8;

/// The key that signs tokens.
pub(crate) struct ResumeKey(hmac::Key);

impl ResumeKey {
    /// From a stored secret.
    pub(crate) fn new(secret: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()))
    }

    /// A token for this peer, good only for the same user and agent; `now` in seconds since 1970.
    pub(crate) fn issue(&self, peer: Uuid, user: Uuid, agent: Uuid, now: i64) -> String {
        let mut bytes = Vec::with_capacity(SIGNED + 32);
        for id in [peer, user, agent] {
            bytes.extend_from_slice(id.as_bytes());
        }
        bytes.extend_from_slice(&(now + LIFE).to_be_bytes());
        let tag = hmac::sign(&self.0, &bytes);
        bytes.extend_from_slice(tag.as_ref());
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The peer that a token names.
    pub(crate) fn verify(&self, token: &str, user: Uuid, agent: Uuid, now: i64) -> Option<Uuid> {
        if token.len() > 256 {
            return None;
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
        let (signed, tag) = bytes.split_at_checked(SIGNED)?;
        hmac::verify(&self.0, signed, tag).ok()?;
        let (ids, expiry) = signed.split_at_checked(3 * ID)?;
        let mut ids = ids
            .chunks_exact(ID)
            .filter_map(|id| Uuid::from_slice(id).ok());
        let (peer, for_user, for_agent) = (ids.next()?, ids.next()?, ids.next()?);
        let expiry = i64::from_be_bytes(expiry.try_into().ok()?);
        (for_user == user && for_agent == agent && expiry > now).then_some(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_user_and_agent_and_a_day() {
        let [peer, user, agent] = [1, 2, 3].map(Uuid::from_u128);
        let key = ResumeKey::new("secret");
        let token = key.issue(peer, user, agent, 1000);
        assert_eq!(key.verify(&token, user, agent, 1000), Some(peer));
        assert_eq!(
            ResumeKey::new("secret").verify(&token, user, agent, 1000),
            Some(peer)
        );
        assert_eq!(key.verify(&token, agent, agent, 1000), None);
        assert_eq!(key.verify(&token, user, user, 1000), None);
        assert_eq!(key.verify(&token, user, agent, 1000 + LIFE), None);
        assert_eq!(
            ResumeKey::new("other").verify(&token, user, agent, 1000),
            None
        );
        let changed = format!("B{}", &token[1..]);
        for bad in [changed.as_str(), "", "!", &token[..20], &"A".repeat(10_000)] {
            assert_eq!(key.verify(bad, user, agent, 1000), None, "{bad}");
        }
    }
}
