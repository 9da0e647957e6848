//! Signed app tokens, and the one-time key of the login flow (coder_facts §2.8, §2.9).
//!
//! A token is the right to one app for a minute, without asking the database again. It names the
//! session or share that it came from, so that withdrawing that one ends the token as well.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::identity::Identity;

/// Seconds that a token lives.
pub const LIFETIME: u64 = 60;
/// Seconds before and after now in which a one-time key counts.
const ONE_TIME: u64 = 60;

/// By what right a token was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// A logged-in session, by its key's id.
    Session(String),
    /// Sharing with everybody.
    Public,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The request that it serves.
    #[serde(flatten)]
    pub identity: Identity,
    /// The workspace's owner.
    pub user_id: Uuid,
    /// The workspace.
    pub workspace_id: Uuid,
    /// The agent.
    pub agent_id: Uuid,
    /// Where the app is, as seen from the workspace.
    pub app_url: String,
    /// The template's setting.
    pub cors_behavior: String,
    /// Where the right comes from.
    pub grant: Grant,
    /// Who visits, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visitor_id: Option<Uuid>,
    /// The state of the database that it was read from; a token of another one is worth nothing.
    #[serde(default)]
    pub epoch: u64,
    /// Expiry, seconds since the epoch.
    pub exp: u64,
}

/// Signs and checks tokens with a secret of this deployment.
pub struct Keys {
    id: String,
    sign: EncodingKey,
    verify: DecodingKey,
    seal: LessSafeKey,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Why a one-time key is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the login key in this address is broken or too old; remove it and open the page again")]
pub struct OneTimeKeyError;

impl Keys {
    /// The keys of a secret of at least 32 random bytes.
    pub fn new(secret: &[u8]) -> Self {
        let derived = |label: &[u8]| digest(&SHA256, &[label, secret].concat());
        let signing = derived(b"relay app token");
        let sealing = derived(b"relay one-time key");
        // A SHA-256 digest has the length of the key.
        #[allow(clippy::expect_used, reason = "the lengths are fixed")]
        let seal = UnboundKey::new(&CHACHA20_POLY1305, sealing.as_ref()).expect("32 bytes");
        Self {
            id: hex::encode(&derived(b"relay key id").as_ref()[..8]),
            sign: EncodingKey::from_secret(signing.as_ref()),
            verify: DecodingKey::from_secret(signing.as_ref()),
            seal: LessSafeKey::new(seal),
        }
    }

    /// A token as compact JWS, HS512.
    ///
    /// # Errors
    /// Only if the claims cannot be written as JSON.
    pub fn sign(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        let mut header = Header::new(Algorithm::HS512);
        header.kid = Some(self.id.clone());
        jsonwebtoken::encode(&header, claims, &self.sign)
    }

    /// The claims of a token that serves `request` at `now`; anything else counts as no token.
    pub fn verify(&self, token: &str, request: &Identity, now: u64) -> Option<Claims> {
        let mut validation = Validation::new(Algorithm::HS512);
        // The time is an argument here, so it is checked below.
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verify, &validation)
            .ok()?
            .claims;
        (claims.exp > now && claims.identity.serves(request)).then_some(claims)
    }

    /// Seals a session key for one use, as the parameter of a redirect.
    pub fn seal_key(&self, key: &str, now: u64, nonce: [u8; NONCE_LEN]) -> String {
        let mut sealed = now.to_be_bytes().to_vec();
        sealed.extend_from_slice(key.as_bytes());
        let nonced = Nonce::assume_unique_for_key(nonce);
        let done = self
            .seal
            .seal_in_place_append_tag(nonced, Aad::empty(), &mut sealed);
        // It fails only for texts longer than 256 GiB.
        debug_assert!(done.is_ok());
        URL_SAFE_NO_PAD.encode([nonce.as_slice(), &sealed].concat())
    }

    /// Opens what [`Keys::seal_key`] made.
    ///
    /// # Errors
    /// When it is not from here, was changed, or is older than a minute.
    pub fn open_key(&self, parameter: &str, now: u64) -> Result<String, OneTimeKeyError> {
        let opened = || {
            let mut bytes = URL_SAFE_NO_PAD.decode(parameter).ok()?;
            let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let plain = self.seal.open_in_place(nonce, Aad::empty(), sealed).ok()?;
            let (made, key) = plain.split_first_chunk::<8>()?;
            let made = u64::from_be_bytes(*made);
            let fresh = made.abs_diff(now) <= ONE_TIME;
            fresh
                .then(|| String::from_utf8(key.to_vec()).ok())
                .flatten()
        };
        opened().ok_or(OneTimeKeyError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            visitor_id: None,
            identity: Identity {
                access_method: "subdomain".into(),
                base_path: "/".into(),
                username_or_id: "alice".into(),
                workspace_name_or_id: "dev".into(),
                app_slug_or_port: "8080".into(),
                ..Identity::default()
            },
            user_id: Uuid::nil(),
            workspace_id: Uuid::nil(),
            agent_id: Uuid::nil(),
            app_url: "http://127.0.0.1:8080".into(),
            cors_behavior: "simple".into(),
            grant: Grant::Session("abcdefghij".into()),
            epoch: 7,
            exp: 1_060,
        }
    }

    #[test]
    fn a_token_serves_its_request_until_it_expires() {
        let keys = Keys::new(&[7; 32]);
        let token = keys.sign(&claims()).unwrap();
        let request = claims().identity;
        assert_eq!(keys.verify(&token, &request, 1_000), Some(claims()));
        assert_eq!(keys.verify(&token, &request, 1_060), None);
        let other = Identity {
            app_slug_or_port: "8081".into(),
            ..request.clone()
        };
        assert_eq!(keys.verify(&token, &other, 1_000), None);
        assert_eq!(Keys::new(&[8; 32]).verify(&token, &request, 1_000), None);
    }

    #[test]
    fn a_changed_token_is_no_token() {
        let keys = Keys::new(&[7; 32]);
        let token = keys.sign(&claims()).unwrap();
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            // The last character of base64 has bits that stand for nothing.
            if at + 1 < token.len() {
                assert_eq!(
                    keys.verify(&changed, &claims().identity, 1_000),
                    None,
                    "{at}"
                );
            }
        }
    }

    #[test]
    fn a_one_time_key_opens_within_a_minute_and_unchanged() {
        let keys = Keys::new(&[7; 32]);
        let parameter = keys.seal_key("abc-def", 5_000, [3; NONCE_LEN]);
        assert_eq!(keys.open_key(&parameter, 5_030).as_deref(), Ok("abc-def"));
        assert_eq!(keys.open_key(&parameter, 4_950).as_deref(), Ok("abc-def"));
        assert_eq!(keys.open_key(&parameter, 5_061), Err(OneTimeKeyError));
        for broken in ["", "garbage", &parameter[1..], &format!("{parameter}AAAA")] {
            assert_eq!(keys.open_key(broken, 5_000), Err(OneTimeKeyError));
        }
    }
}
