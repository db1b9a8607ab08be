//! The engine can be lifted out: what it is made of knows nothing of what stands on it.

use std::path::Path;

use crate::support::sources::sources;

#[test]
fn the_engine_knows_nothing_of_rides_or_http() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for (module, may_use) in
        [("idempotency", &["idempotency", "database"][..]), ("database", &["database", "errors"])]
    {
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
