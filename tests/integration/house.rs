//! The engine can be lifted out: what it is made of knows nothing of what stands on it. And what the documents point at is
//! there.

use std::path::Path;

use crate::support::sources::sources;

#[test]
fn the_engine_knows_nothing_of_rides_or_http() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for (module, may_use) in [
        ("idempotency", &["idempotency", "database", "clock", "errors"][..]),
        ("database", &["database", "errors"]),
    ] {
        for file in sources(&src.join(module), "rs") {
            let text = std::fs::read_to_string(&file).unwrap();
            for used in text.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                assert!(may_use.contains(&used.as_str()), "{} uses {used}", file.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 5);
}

/// The targets of the links in a Markdown text.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// A heading as a link's fragment names it.
fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .collect::<String>()
        .replace(' ', "-")
}

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents = sources(&root.join("docs"), "md");
    documents.extend(["README.md", "CHANGELOG.md", "tests/mutants/README.md"].map(|name| root.join(name)));
    let mut broken = Vec::new();
    for document in &documents {
        let text = std::fs::read_to_string(document).unwrap();
        for link in links(&text).filter(|link| !link.starts_with("http")) {
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            let leads = target.exists()
                && (fragment.is_empty() || {
                    let text = std::fs::read_to_string(&target).unwrap();
                    text.lines()
                        .filter(|line| line.starts_with('#'))
                        .any(|line| slug(line.trim_start_matches(['#', ' '])) == fragment)
                });
            if !leads {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(documents.len() > 5 && broken.is_empty(), "{broken:#?}");
}
