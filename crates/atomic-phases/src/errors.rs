//! How errors are passed on and printed.

use std::error::Error;

/// An error whose type does not matter: it is reported, and never matched on.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Returns an error and all its sources as one line. No error repeats its source in its own text, so nothing appears
/// twice.
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
