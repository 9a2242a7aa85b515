//! A node's pod network: bridge, masquerading, port mappings; and taking it down again.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::place::Place;

/// Where Debian keeps the CNI plugins.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Writes the node's CNI configuration and returns its folder.
pub fn configure(place: &Place) -> PathBuf {
    let folder = place.make("cni");
    let subnet = format!("{}.0/24", place.subnet());
    let list = json!({
        "cniVersion": "1.0.0",
        "name": place.network(),
        "plugins": [
            {
                "type": "bridge",
                "bridge": place.bridge(),
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": place.make("ipam"),
                    "ranges": [[{ "subnet": subnet }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    fs_err::write(folder.join("10-test.conflist"), list.to_string()).expect("own folder");
    folder
}

/// The node's interface and rules that are on the machine.
pub fn leftovers(place: &Place) -> Vec<String> {
    let mut found = rules(place);
    let bridge = PathBuf::from("/sys/class/net").join(place.bridge());
    // The bridge itself stays when its last pod goes: CNI has no call that takes it down.
    let ports = bridge.join("brif").read_dir().into_iter().flatten().flatten();
    found.extend(ports.map(|port| format!("interface {}", port.file_name().display())));
    let leases = place.folder().join("ipam").join(place.network());
    let leases = leases.read_dir().into_iter().flatten().flatten().map(|lease| lease.file_name());
    let leases = leases.filter(|name| name.to_string_lossy().starts_with(&place.subnet()));
    found.extend(leases.map(|lease| format!("address {}", lease.display())));
    found
}

/// Removes the bridge with its ports, the leases, and every rule that names this node's network.
pub fn take_down(place: &Place) {
    // There are none if no pod was on the network.
    let _ = fs_err::remove_dir_all(place.folder().join("ipam"));
    quietly(Command::new("ip").args(["link", "delete", &place.bridge()]));
    let rules = rules(place);
    for rule in &rules {
        let words = rule.strip_prefix("iptables ").unwrap_or(rule).replacen("-A ", "-D ", 1);
        // Quoted as a shell quotes, by iptables itself.
        let command = format!("exec iptables --wait --table nat {words}");
        quietly(Command::new("sh").args(["-c", &command]));
    }
    for chain in rules.iter().filter_map(|rule| rule.split(" -j ").nth(1)) {
        let chain = chain.split(' ').next().unwrap_or(chain);
        if chain.starts_with("CNI-") {
            quietly(Command::new("iptables").args(["--wait", "--table", "nat", "--flush", chain]));
            quietly(Command::new("iptables").args([
                "--wait",
                "--table",
                "nat",
                "--delete-chain",
                chain,
            ]));
        }
    }
}

fn rules(place: &Place) -> Vec<String> {
    let output = Command::new("iptables-save").args(["-t", "nat"]).output();
    let output = output.expect("iptables is installed (make setup)");
    let mark = format!("\\\"{}\\\"", place.network());
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines
        .lines()
        .filter(|line| line.starts_with("-A ") && line.contains(&mark))
        .map(|line| format!("iptables {line}"))
        .collect()
}

fn quietly(command: &mut Command) {
    // What is to be removed may be gone already.
    let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
}
