//! Tables of damage: what is done to a pool and what must be found.

use super::Image;

/// An edit and what must be found: texts of findings, in any order.
pub struct Case {
    pool: &'static str,
    edit: fn(&mut Image),
    finds: &'static [&'static str],
    /// Whether the damage has consequences that are findings too.
    more: bool,
}

/// Damages a fresh pool for each case and compares.
pub fn run(cases: &[Case]) {
    let mut failures = String::new();
    for (number, case) in cases.iter().enumerate() {
        let mut image = Image::of(case.pool);
        (case.edit)(&mut image);
        let report = image.check();
        let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        let missed = case
            .finds
            .iter()
            .any(|text| !texts.iter().any(|found| found == text));
        if missed || (!case.more && texts.len() != case.finds.len()) {
            failures += &format!("case {number}: {:#?}\nfound {texts:#?}\n", case.finds);
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// Exactly these findings.
pub const fn only(
    pool: &'static str,
    edit: fn(&mut Image),
    finds: &'static [&'static str],
) -> Case {
    Case {
        pool,
        edit,
        finds,
        more: false,
    }
}

/// These findings and others that follow from them.
pub const fn among(
    pool: &'static str,
    edit: fn(&mut Image),
    finds: &'static [&'static str],
) -> Case {
    Case {
        pool,
        edit,
        finds,
        more: true,
    }
}
