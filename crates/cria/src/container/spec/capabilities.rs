//! Which capabilities a container gets. Pure.

use std::collections::BTreeSet;
use std::str::FromStr;

use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxCapabilitiesBuilder};

use super::SpecError;
use super::node::NodeFacts;
use crate::container::config::SecurityContext;

/// Names with `CAP_` in front.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Bounding, permitted and effective.
    pub(crate) held: BTreeSet<String>,
    /// Kept across `execve` by a user other than root; a subset of `held`.
    pub(crate) ambient: BTreeSet<String>,
}

/// What `security` asks for, clamped to what the node can give.
pub(crate) fn of(security: &SecurityContext, node: &NodeFacts) -> Result<Capabilities, SpecError> {
    let add = Asked::parse("add_capabilities", &security.add_capabilities)?;
    let drop = Asked::parse("drop_capabilities", &security.drop_capabilities)?;
    let ambient = Asked::parse("add_ambient_capabilities", &security.add_ambient_capabilities)?;

    let mut held = if security.privileged {
        node.capabilities.clone()
    } else {
        unprivileged(&add, &drop, node)
    };
    let mut ambient = if ambient.all { node.capabilities.clone() } else { ambient.named };
    held.extend(ambient.iter().cloned());
    held.retain(|name| node.capabilities.contains(name));
    ambient.retain(|name| node.capabilities.contains(name));
    Ok(Capabilities { held, ambient })
}

/// `ALL` is applied first and single names after it, so that "drop ALL, add X" is X, and "add ALL,
/// drop X" all but X. Dropping wins over adding.
fn unprivileged(add: &Asked, drop: &Asked, node: &NodeFacts) -> BTreeSet<String> {
    let mut held = match (add.all, drop.all) {
        (_, true) => BTreeSet::new(),
        (true, false) => node.capabilities.clone(),
        (false, false) => node.default_capabilities.clone(),
    };
    held.extend(add.named.iter().cloned());
    held.retain(|name| !drop.named.contains(name));
    held
}

struct Asked {
    all: bool,
    named: BTreeSet<String>,
}

impl Asked {
    fn parse(field: &'static str, names: &[String]) -> Result<Self, SpecError> {
        let mut asked = Self { all: false, named: BTreeSet::new() };
        for name in names {
            let upper = name.to_ascii_uppercase();
            let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if bare == "ALL" {
                asked.all = true;
            } else if Capability::from_str(bare).is_ok() {
                asked.named.insert(format!("CAP_{bare}"));
            } else {
                return Err(SpecError::invalid(field, format!("no such capability: {name:?}")));
            }
        }
        Ok(asked)
    }
}

impl Capabilities {
    pub(super) fn to_spec(&self) -> LinuxCapabilities {
        let held = to_set(&self.held);
        let ambient = to_set(&self.ambient);
        LinuxCapabilitiesBuilder::default()
            .bounding(held.clone())
            .permitted(held.clone())
            .effective(held)
            // The kernel lets nothing be ambient that is not inheritable. Nothing else may be: an
            // inheritable capability comes back through a file's (CVE-2022-24769).
            .inheritable(ambient.clone())
            .ambient(ambient)
            .build()
            .expect("every field is set")
    }
}

/// A name the specification's types do not know (a newer kernel's) cannot be given.
fn to_set(names: &BTreeSet<String>) -> oci_spec::runtime::Capabilities {
    let bare = names.iter().filter_map(|name| name.strip_prefix("CAP_"));
    bare.filter_map(|name| Capability::from_str(name).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::node;
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|&name| name.to_owned()).collect()
    }

    fn held(add: &[&str], drop: &[&str]) -> BTreeSet<String> {
        let security = SecurityContext {
            add_capabilities: names(add),
            drop_capabilities: names(drop),
            ..Default::default()
        };
        of(&security, &node()).unwrap().held
    }

    #[test]
    fn names_are_added_to_and_dropped_from_the_default_set() {
        let default = held(&[], &[]);
        assert_eq!(default, node().default_capabilities);
        let all = node().capabilities;
        let with = |set: &BTreeSet<String>, name: &str| {
            let mut set = set.clone();
            assert!(set.insert(name.to_owned()));
            set
        };
        let without = |set: &BTreeSet<String>, name: &str| {
            let mut set = set.clone();
            assert!(set.remove(name));
            set
        };
        for (add, drop, expected) in [
            (&["NET_ADMIN"][..], &[][..], with(&default, "CAP_NET_ADMIN")),
            (&["CAP_NET_ADMIN"], &[], with(&default, "CAP_NET_ADMIN")),
            (&["net_admin"], &[], with(&default, "CAP_NET_ADMIN")),
            (&[], &["CHOWN"], without(&default, "CAP_CHOWN")),
            (&["CHOWN"], &["CHOWN"], without(&default, "CAP_CHOWN")),
            (&["ALL"], &[], all.clone()),
            (&["ALL"], &["CHOWN"], without(&all, "CAP_CHOWN")),
            (&[], &["ALL"], BTreeSet::new()),
            (&["NET_ADMIN"], &["ALL"], with(&BTreeSet::new(), "CAP_NET_ADMIN")),
            (&["ALL"], &["ALL"], BTreeSet::new()),
            (&["ALL", "NET_ADMIN"], &["CAP_ALL"], with(&BTreeSet::new(), "CAP_NET_ADMIN")),
            // The node does not have it, so nobody gets it.
            (&["SYS_RESOURCE"], &[], default.clone()),
        ] {
            assert_eq!(held(add, drop), expected, "add {add:?}, drop {drop:?}");
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_that_says_where_it_is() {
        let security = |field: &str| {
            let mut security = SecurityContext { privileged: true, ..Default::default() };
            let list = match field {
                "add_capabilities" => &mut security.add_capabilities,
                "drop_capabilities" => &mut security.drop_capabilities,
                _ => &mut security.add_ambient_capabilities,
            };
            *list = names(&["CHOWN", "FLY"]);
            security
        };
        for field in ["add_capabilities", "drop_capabilities", "add_ambient_capabilities"] {
            let error = of(&security(field), &node()).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains("FLY"), "{error}");
        }
    }

    #[test]
    fn a_privileged_container_has_all_that_the_node_has_whatever_it_drops() {
        let security = SecurityContext {
            privileged: true,
            drop_capabilities: names(&["ALL"]),
            ..Default::default()
        };
        let capabilities = of(&security, &node()).unwrap();
        assert_eq!(capabilities.held, node().capabilities);
        assert_eq!(capabilities.ambient, BTreeSet::new());
    }

    #[test]
    fn what_is_ambient_is_also_held_and_inheritable_and_nothing_else_is_inheritable() {
        let security = SecurityContext {
            drop_capabilities: names(&["ALL"]),
            add_ambient_capabilities: names(&["NET_ADMIN", "SYS_RESOURCE"]),
            ..Default::default()
        };
        let capabilities = of(&security, &node()).unwrap();
        let spec = capabilities.to_spec();
        let only = Some(oci_spec::runtime::Capabilities::from([Capability::NetAdmin]));
        for set in [
            spec.bounding(),
            spec.permitted(),
            spec.effective(),
            spec.inheritable(),
            spec.ambient(),
        ] {
            assert_eq!(*set, only);
        }
        let default = of(&SecurityContext::default(), &node()).unwrap().to_spec();
        assert_eq!(
            default.bounding().as_ref().map(|set| set.len()),
            Some(node().default_capabilities.len())
        );
        assert_eq!(default.inheritable().as_ref().map(|set| set.len()), Some(0));
    }
}
