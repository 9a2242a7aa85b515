//! The scopes of an image's name, most specific first, as policies and `registries.d` share them.
//! Pure.

use crate::reference::Reference;

/// `repository:tag` or `repository@digest`, the repository, each of its parents, the host (with
/// its port), and `*.domain` for each domain that the host (without its port) is in.
///
/// A name with both tag and digest is one by digest: nobody asks where its tag points.
pub(super) fn scopes(image: &Reference) -> Vec<String> {
    let repository = image.repository();
    let mut scopes = vec![match (image.digest(), image.tag()) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, Some(tag)) => format!("{repository}:{tag}"),
        (None, None) => repository.clone(),
    }];
    let mut name = repository.as_str();
    scopes.push(name.to_owned());
    while let Some((parent, _)) = name.rsplit_once('/') {
        scopes.push(parent.to_owned());
        name = parent;
    }
    let mut host = image.domain().split(':').next().unwrap_or_default();
    while let Some((_, domain)) = host.split_once('.') {
        scopes.push(format!("*.{domain}"));
        host = domain;
    }
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_go_from_the_image_to_its_domains() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let by_digest = format!("localhost:5000/x@sha256:{hex}");
        for (name, expected) in [
            (
                "a.b.example:5000/n/m/i:1",
                &[
                    "a.b.example:5000/n/m/i:1",
                    "a.b.example:5000/n/m/i",
                    "a.b.example:5000/n/m",
                    "a.b.example:5000/n",
                    "a.b.example:5000",
                    "*.b.example",
                    "*.example",
                ][..],
            ),
            (
                "busybox",
                &[
                    "docker.io/library/busybox:latest",
                    "docker.io/library/busybox",
                    "docker.io/library",
                    "docker.io",
                    "*.io",
                ],
            ),
            (&by_digest, &[&by_digest, "localhost:5000/x", "localhost:5000"]),
            (
                &format!("localhost:5000/x:1@sha256:{hex}"),
                &[&by_digest, "localhost:5000/x", "localhost:5000"],
            ),
        ] {
            assert_eq!(scopes(&Reference::parse(name, None).unwrap()), expected, "{name}");
        }
    }
}
