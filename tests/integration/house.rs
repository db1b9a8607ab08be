//! The modules have an order, and each uses only those below it. Each link in the documents has a target.

use std::path::Path;

use crate::support::sources::sources;

/// The program's modules, each above those that it may use.
const PROGRAM: [&str; 19] = [
    "cli",
    "supervisor",
    "config",
    "operations",
    "api",
    "demo",
    "rides",
    "refunds",
    "endpoint",
    "metrics",
    "receipts",
    "users",
    "stripe",
    "queues",
    "database",
    "http",
    "open_files",
    "telemetry",
    "role",
];
/// The library's modules, in the same way.
const LIBRARY: [&str; 8] = ["roles", "queue", "idempotency", "processes", "rules", "database", "errors", "clock"];

/// Returns the module of a path, such as `queue` of `queue/work.rs`.
fn module(path: &str) -> &str {
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    &path[..end]
}

/// Returns each file with each module that it uses.
fn arrows(src: &Path) -> Vec<(String, String)> {
    let mut arrows = Vec::new();
    for file in sources(src, "rs") {
        let name = file.strip_prefix(src).unwrap().display().to_string();
        let text = std::fs::read_to_string(&file).unwrap();
        for rest in text.split("crate::").skip(1) {
            let used = match rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
                Some((several, _)) => several.split(',').map(|path| module(path.trim())).collect(),
                None => vec![module(rest)],
            };
            arrows.extend(used.into_iter().map(|used| (name.clone(), used.to_owned())));
        }
    }
    arrows
}

#[test]
fn arrows_point_downwards() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (dir, order) in [("src", &PROGRAM[..]), ("crates/atomic-phases/src", &LIBRARY)] {
        let place = |module: &str| {
            order.iter().position(|known| *known == module).unwrap_or_else(|| panic!("where is {module}?"))
        };
        let mut up = Vec::new();
        for (file, used) in arrows(&root.join(dir)) {
            let from = module(&file);
            // The root only lists the modules.
            if !["lib", "main"].contains(&from) && place(&used) < place(from) {
                up.push(format!("{dir}/{file} uses {used}"));
            }
        }
        assert!(up.is_empty(), "{up:#?}");
    }
}

/// Returns the targets of the links in a Markdown text.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// Returns a heading in the form of a link's fragment.
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
    documents.extend(
        [
            "README.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "crates/atomic-phases/README.md",
            "tests/mutants/README.md",
        ]
        .map(|name| root.join(name)),
    );
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

/// The library has its own schema; a database of the program has all of it, word for word.
#[test]
fn the_librarys_schema_is_part_of_ours() {
    let ours = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("schema.sql")).unwrap();
    let statements = atomic_phases::SCHEMA.split("\n\n").skip(1);
    let missing: Vec<&str> = statements.filter(|statement| !ours.contains(statement.trim())).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
