//! Pods on the pod network and on the host's: addresses, names, ports.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{Case, case};
use crate::process::free_port;
use crate::site::{Site, ip, read, with};

pub(crate) const CASES: &[Case] = &[
    case("bridge network: the address of the status answers", bridge),
    case("host network: the node's address, network and names", host_network),
    case("containers of a pod talk over localhost", localhost),
    case("host port", host_port),
    case("DNS policy and configuration, host aliases, hostname", names),
    case("sysctls of a pod", sysctls),
];

/// Serves its own name on port 80 of the pod.
const SERVE: &str = "mkdir -p /tmp/www; hostname > /tmp/www/name; exec httpd -f -p 80 -h /tmp/www";

fn bridge(site: &Site) -> Result<()> {
    let look =
        "ip -4 -o addr show dev eth0 | tr -s ' ' | cut -d ' ' -f 4; cat /etc/hosts; echo end";
    site.apply("bridge", json!({ "containers": [site.sh("main", &format!("{look}; {SERVE}"))] }));
    let pod = site.ready("bridge")?;
    let ip = ip(&pod);
    ensure!(ip.starts_with(&site.subnet), "{ip} is not of {}", site.subnet);
    ensure!(!ip.contains('/') && pod["status"]["podIPs"][0]["ip"] == ip, "{}", pod["status"]);
    ensure!(get(&format!("{ip}:80"), "/name")? == "bridge-node\n");
    let log = site.await_log("bridge", "main", "end\n")?;
    ensure!(log.starts_with(&format!("{ip}/24\n")), "{log}");
    ensure!(log.contains(&format!("{ip}\tbridge-node\n")), "{log}");
    Ok(())
}

fn host_network(site: &Site) -> Result<()> {
    let look = "for kind in net uts; do readlink /proc/self/ns/$kind; done; hostname; \
                ip -4 addr | grep -c -F \"inet $HOST_IP/\"; echo end; sleep 10000";
    let field = json!({ "fieldRef": { "fieldPath": "status.hostIP" } });
    let env = json!({ "env": [{ "name": "HOST_IP", "valueFrom": field }] });
    let spec = json!({ "hostNetwork": true, "containers": [with(site.sh("main", look), env)] });
    site.apply("host-network", spec);
    let pod = site.ready("host-network")?;
    // The CRI has none for it, and a kubelet without a cluster does not put in the node's.
    ensure!(ip(&pod).is_empty(), "{}", pod["status"]);
    let own = |kind: &str| fs_err::read_link(format!("/proc/self/ns/{kind}"));
    let (net, uts) = (own("net")?, own("uts")?);
    let host = read("/proc/sys/kernel/hostname")?;
    let (net, uts) = (net.to_string_lossy(), uts.to_string_lossy());
    site.expect_log("host-network", "main", &[&net, &uts, host.trim(), "1"])
}

fn localhost(site: &Site) -> Result<()> {
    let ask = "until wget -q -O - http://127.0.0.1:80/name 2>&-; do sleep 0.2; done; echo end; sleep 10000";
    let spec = json!({ "containers": [
        site.sh("asks", ask),
        site.sh("serves", SERVE),
        // A third one sees the same interface.
        site.sh("looks", "ip -o link show dev eth0 | wc -l; echo end; sleep 10000"),
    ]});
    site.apply("localhost", spec);
    site.ready("localhost")?;
    site.expect_log("localhost", "asks", &["localhost-node"])?;
    site.expect_log("localhost", "looks", &["1"])
}

fn host_port(site: &Site) -> Result<()> {
    let port = free_port();
    let ports = json!({ "ports": [{ "containerPort": 80, "hostPort": port }] });
    let spec = json!({ "containers": [with(site.sh("main", SERVE), ports)] });
    site.apply("host-port", spec);
    site.ready("host-port")?;
    // The bridge's own address, which is one of the host's.
    let host = format!("{}.1", site.subnet);
    ensure!(get(&format!("{host}:{port}"), "/name")? == "host-port-node\n");
    Ok(())
}

fn names(site: &Site) -> Result<()> {
    let look = "cat /etc/resolv.conf; grep -w alias /etc/hosts; hostname; echo end; sleep 10000";
    let spec = json!({
        "dnsPolicy": "None",
        "dnsConfig": {
            "nameservers": ["10.213.0.53", "10.213.0.54"],
            "searches": ["one.test", "two.test"],
            // One alone: the kubelet writes several in no certain order.
            "options": [{ "name": "ndots", "value": "3" }],
        },
        "hostAliases": [{ "ip": "10.213.0.1", "hostnames": ["alias", "other.alias.test"] }],
        "hostname": "called",
        "containers": [site.sh("main", look)],
    });
    site.apply("names", spec);
    site.expect_log(
        "names",
        "main",
        &[
            "search one.test two.test",
            "nameserver 10.213.0.53",
            "nameserver 10.213.0.54",
            "options ndots:3",
            "10.213.0.1\talias\tother.alias.test",
            "called",
        ],
    )
}

fn sysctls(site: &Site) -> Result<()> {
    let look = "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced; echo end; sleep 10000";
    let spec = json!({
        "securityContext": { "sysctls": [
            { "name": "net.ipv4.ip_local_port_range", "value": "20000 20999" },
            { "name": "kernel.shm_rmid_forced", "value": "1" },
        ]},
        "containers": [site.sh("main", look)],
    });
    site.apply("sysctls", spec);
    site.expect_log("sysctls", "main", &["20000\t20999", "1"])
}

/// The body of what a web server answers, once it is there.
fn get(address: &str, path: &str) -> Result<String> {
    let ask = || -> Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").context("an answer without a body")?.1;
        Ok(body.to_owned())
    };
    let mut last = ask();
    harness::wait::within(Duration::from_secs(30), || {
        if last.is_err() {
            last = ask();
        }
        last.is_ok().then_some(())
    });
    last.with_context(|| format!("http://{address}{path}"))
}
