//! What names may look like (coder_facts §2.4). Two hyphens in a row are in none of them, which is
//! what makes `--` a safe separator of host labels.

const LONGEST: usize = 32;

/// Letters, digits and single hyphens between them; either case.
pub fn is_name(text: &str) -> bool {
    let parts = text.split('-');
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
    parts.into_iter().all(word)
}

/// An app's slug: a name without upper-case letters.
pub fn is_slug(text: &str) -> bool {
    is_name(text) && !text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// The name of a user or a workspace: at most 32 characters.
pub fn is_account_name(text: &str) -> bool {
    text.len() <= LONGEST && is_name(text)
}
