//! The repository's copy of the vectors and recorded sessions, through the real code.

use relay_lab::vectors;

#[test]
fn every_row_holds() {
    let folder = vectors::own_copy();
    let files = vectors::files(&folder).unwrap();
    assert!(files.len() >= 37, "{}", files.len());
    let mut unknown = Vec::new();
    let mut left = 0;
    for path in files {
        let outcome = vectors::run(&path).unwrap();
        let Some(outcome) = outcome else {
            unknown.push(path.file_name().unwrap().to_owned());
            continue;
        };
        assert!(
            outcome.failed.is_empty(),
            "{}: {:#?}",
            path.display(),
            outcome.failed
        );
        assert!(outcome.passed > 0, "{}", path.display());
        left += outcome.left.len();
    }
    assert_eq!(left, 0);
    assert!(unknown.is_empty(), "{unknown:?}");
}
