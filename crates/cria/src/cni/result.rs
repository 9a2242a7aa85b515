//! What an ADD answers: kept as the plugin gave it, and read for the pod's addresses.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::config::Object;

/// The result of the last plugin of the chain, raw: DEL passes it on as `prevResult`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct AddResult(pub(super) Object);

#[derive(Deserialize)]
struct Addresses {
    #[serde(default)]
    ips: Vec<Address>,
    #[serde(default)]
    interfaces: Vec<Interface>,
}

#[derive(Deserialize)]
struct Address {
    address: String,
    /// An index into `interfaces`.
    interface: Option<usize>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    /// Empty: an interface of the host.
    #[serde(default)]
    sandbox: String,
}

impl AddResult {
    /// The pod's addresses, bare, the primary one first: those of `interface`, then those of other
    /// interfaces in the sandbox, each in the plugin's order. Never empty.
    pub(crate) fn ips(&self, interface: &str) -> Result<Vec<IpAddr>, String> {
        let Addresses { ips, interfaces } =
            Addresses::deserialize(&self.0).map_err(|error| error.to_string())?;
        let mut ranked = Vec::new();
        for ip in &ips {
            if let Some(rank) = rank(ip, &interfaces, interface)? {
                ranked.push((rank, bare(&ip.address)?));
            }
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        let mut ips: Vec<IpAddr> = Vec::new();
        for (_, ip) in ranked {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        if ips.is_empty() { Err("it has no address for the pod".into()) } else { Ok(ips) }
    }
}

/// 0 for the pod's interface, 1 for another one in the sandbox, `None` for one of the host.
fn rank(ip: &Address, interfaces: &[Interface], wanted: &str) -> Result<Option<u8>, String> {
    // The index is optional: then the address is the pod's.
    let Some(index) = ip.interface else { return Ok(Some(0)) };
    let interface =
        interfaces.get(index).ok_or_else(|| format!("address of interface {index}: no such"))?;
    Ok(match interface {
        Interface { sandbox, .. } if sandbox.is_empty() => None,
        Interface { name, .. } if name == wanted => Some(0),
        Interface { .. } => Some(1),
    })
}

fn bare(address: &str) -> Result<IpAddr, String> {
    let ip = address.split_once('/').map_or(address, |(ip, _prefix)| ip);
    ip.parse().map_err(|_| format!("{address:?} is not an address"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn ips(result: &Value) -> Result<Vec<String>, String> {
        let result: AddResult = serde_json::from_value(result.clone()).unwrap();
        Ok(result.ips("eth0")?.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_addresses_of_the_sandbox_come_bare_and_the_primary_first() {
        let interfaces = json!([
            {"name": "cni0"}, {"name": "net1", "sandbox": "/ns"}, {"name": "eth0", "sandbox": "/ns"}
        ]);
        for (addresses, expected) in [
            (json!([{"address": "10.0.0.2/24", "interface": 2, "version": "4"}]), vec!["10.0.0.2"]),
            (
                json!([{"address": "fd00::2/64", "interface": 2}, {"address": "10.0.0.2/24", "interface": 2}]),
                vec!["fd00::2", "10.0.0.2"],
            ),
            (
                json!([{"address": "10.1.0.2/24", "interface": 1}, {"address": "10.0.0.1/24", "interface": 0},
                    {"address": "10.0.0.2/24", "interface": 2}, {"address": "10.0.0.2/24", "interface": 2}]),
                vec!["10.0.0.2", "10.1.0.2"],
            ),
            (json!([{"address": "10.0.0.2/24"}]), vec!["10.0.0.2"]),
            (json!([{"address": "10.0.0.2"}]), vec!["10.0.0.2"]),
        ] {
            let result = json!({"cniVersion": "1.0.0", "interfaces": interfaces, "ips": addresses});
            assert_eq!(ips(&result).unwrap(), expected);
        }
    }

    #[test]
    fn a_result_without_a_usable_address_is_refused() {
        for (result, reason) in [
            (json!({}), "no address"),
            (json!({"ips": []}), "no address"),
            (
                json!({"ips": [{"address": "10.0.0.1/24", "interface": 0}], "interfaces": [{"name": "cni0"}]}),
                "no address",
            ),
            (json!({"ips": [{"address": "10.0.0.1/24", "interface": 3}]}), "no such"),
            (json!({"ips": [{"address": "ten"}]}), "not an address"),
            (json!({"ips": 4}), "invalid type"),
        ] {
            let error = ips(&result).unwrap_err();
            assert!(error.contains(reason), "{result}: {error}");
        }
    }
}
