//! How errors are told.

use std::error::Error;

/// An error whose type is of no matter: it is told, and not taken apart.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// An error and all its sources as one line. No source is repeated in an error's own text, so this says
/// everything once.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}
