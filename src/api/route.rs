//! Finds what is served at a path.

use std::sync::Arc;

use super::serve::Serves;

/// What is served at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// One of the operations, which take `POST`.
    Operation {
        /// Its index among the operations.
        place: usize,
        /// The number in the path.
        id: Option<i64>,
    },
    /// A service, which takes `GET` and `HEAD`.
    Service(Service),
}

/// Information about the process itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Alive,
    Ready,
    Metrics,
}

const SERVICES: [(&str, Service); 3] =
    [("/healthz", Service::Alive), ("/readyz", Service::Ready), ("/metrics", Service::Metrics)];

/// Returns what is served at this path, if anything.
pub(super) fn find(operations: &[Arc<dyn Serves>], path: &str) -> Option<Route> {
    let service = SERVICES.iter().find(|(at, _)| *at == path).map(|(_, service)| Route::Service(*service));
    service.or_else(|| {
        operations.iter().enumerate().find_map(|(place, operation)| {
            let id = matches(operation.path(), path)?;
            Some(Route::Operation { place, id })
        })
    })
}

impl Route {
    /// Returns the path's label in metrics, without what differs from request to request.
    pub(super) fn label(self, operations: &[Arc<dyn Serves>]) -> &'static str {
        match self {
            Self::Operation { place, .. } => operations[place].path(),
            Self::Service(service) => {
                SERVICES.iter().find(|(_, known)| *known == service).map_or("", |(path, _)| path)
            }
        }
    }
}

/// Returns `None` if the path does not fit the pattern, else the number in place of `{id}`, if the pattern has that. A
/// number has one spelling: without sign or leading zero.
fn matches(pattern: &str, path: &str) -> Option<Option<i64>> {
    let Some((before, after)) = pattern.split_once("{id}") else { return (pattern == path).then_some(None) };
    let digits = path.strip_prefix(before)?.strip_suffix(after)?;
    let id: i64 = digits.parse().ok().filter(|id| *id > 0)?;
    (id.to_string() == digits).then_some(Some(id))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_number_has_one_spelling() {
        let refund = |path| matches("/rides/{id}/refund", path);
        assert_eq!(refund("/rides/17/refund"), Some(Some(17)));
        for path in [
            "/rides/0/refund",
            "/rides/+1/refund",
            "/rides/01/refund",
            "/rides/-1/refund",
            "/rides//refund",
            "/rides/1",
        ] {
            assert_eq!(refund(path), None, "{path}");
        }
        assert_eq!(refund("/rides/9223372036854775808/refund"), None);
        assert_eq!((matches("/rides", "/rides"), matches("/rides", "/rides/")), (Some(None), None));
    }
}
