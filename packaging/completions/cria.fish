# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_cria_global_optspecs
    string join \n config= config-dir= root= run-dir= listen= registries-conf= netns-dir= cni-conf-dir= cni-bin-dir= oci-runtime= monitor= cgroup-driver= log-level= log-format= h/help V/version
end

function __fish_cria_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_cria_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_cria_using_subcommand
    set -l cmd (__fish_cria_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c cria -n "__fish_cria_needs_command" -l config -d 'The configuration file; may be missing unless named here [default: /etc/cria/cria.toml]' -r -F
complete -c cria -n "__fish_cria_needs_command" -l config-dir -d 'Directory of drop-ins (*.toml), read in the order of their names after the file; may be missing unless named here [default: /etc/cria/cria.toml.d]' -r -F
complete -c cria -n "__fish_cria_needs_command" -l root -d 'What outlives a reboot: images, root filesystems, records' -r
complete -c cria -n "__fish_cria_needs_command" -l run-dir -d 'What dies with a boot: sockets, pinned namespaces, exit records' -r
complete -c cria -n "__fish_cria_needs_command" -l listen -d 'The unix socket that serves the CRI' -r
complete -c cria -n "__fish_cria_needs_command" -l registries-conf -d 'Where registries, their mirrors and their trust are configured' -r
complete -c cria -n "__fish_cria_needs_command" -l netns-dir -d 'Where the pods\' network namespaces are pinned' -r
complete -c cria -n "__fish_cria_needs_command" -l cni-conf-dir -d 'CNI network configurations' -r
complete -c cria -n "__fish_cria_needs_command" -l cni-bin-dir -d 'CNI plugins; may be repeated, the first directory that has a plugin wins' -r
complete -c cria -n "__fish_cria_needs_command" -l oci-runtime -d 'The OCI runtime: a path, or a name in $PATH [default: crun if it works here, else runc]' -r
complete -c cria -n "__fish_cria_needs_command" -l monitor -d 'The monitor\'s executable [default: beside cria\'s own]' -r
complete -c cria -n "__fish_cria_needs_command" -l cgroup-driver -d 'Who owns the cgroup tree' -r -f -a "systemd\t'systemd makes a slice per pod and a scope per container, over D-Bus'
cgroupfs\t'cria and the OCI runtime make the directories themselves'
auto\t'Systemd where it is PID 1, else cgroupfs'"
complete -c cria -n "__fish_cria_needs_command" -l log-level -d 'The least important messages to log' -r -f -a "error\t'Someone must act'
warn\t'And what goes on, degraded'
info\t'And every operation that changed something'
debug\t'And every query'
trace\t'And what crosses the boundaries to other processes'"
complete -c cria -n "__fish_cria_needs_command" -l log-format -d 'How messages are logged' -r -f -a "text\t'For people'
json\t'One JSON object per line'"
complete -c cria -n "__fish_cria_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c cria -n "__fish_cria_needs_command" -s V -l version -d 'Print version'
complete -c cria -n "__fish_cria_needs_command" -f -a "version" -d 'Print the version, and the Kubernetes releases it serves'
complete -c cria -n "__fish_cria_needs_command" -f -a "config" -d 'Print the configuration in effect, and where each key was set'
complete -c cria -n "__fish_cria_needs_command" -f -a "check" -d 'Print what this node has and lacks, what follows, and what to do. The exit code is 0 if nothing is missing, 1 if pods could not run, 2 if something is missing that some pods want'
complete -c cria -n "__fish_cria_needs_command" -f -a "status" -d 'Ask the running daemon whether it is ready, and print how its pulls get on'
complete -c cria -n "__fish_cria_using_subcommand version" -l config -d 'The configuration file; may be missing unless named here [default: /etc/cria/cria.toml]' -r -F
complete -c cria -n "__fish_cria_using_subcommand version" -l config-dir -d 'Directory of drop-ins (*.toml), read in the order of their names after the file; may be missing unless named here [default: /etc/cria/cria.toml.d]' -r -F
complete -c cria -n "__fish_cria_using_subcommand version" -l root -d 'What outlives a reboot: images, root filesystems, records' -r
complete -c cria -n "__fish_cria_using_subcommand version" -l run-dir -d 'What dies with a boot: sockets, pinned namespaces, exit records' -r
complete -c cria -n "__fish_cria_using_subcommand version" -l listen -d 'The unix socket that serves the CRI' -r
complete -c cria -n "__fish_cria_using_subcommand version" -l registries-conf -d 'Where registries, their mirrors and their trust are configured' -r
complete -c cria -n "__fish_cria_using_subcommand version" -l netns-dir -d 'Where the pods\' network namespaces are pinned' -r
complete -c cria -n "__fish_cria_using_subcommand version" -l cni-conf-dir -d 'CNI network configurations' -r
complete -c cria -n "__fish_cria_using_subcommand version" -l cni-bin-dir -d 'CNI plugins; may be repeated, the first directory that has a plugin wins' -r
complete -c cria -n "__fish_cria_using_subcommand version" -l oci-runtime -d 'The OCI runtime: a path, or a name in $PATH [default: crun if it works here, else runc]' -r
complete -c cria -n "__fish_cria_using_subcommand version" -l monitor -d 'The monitor\'s executable [default: beside cria\'s own]' -r
complete -c cria -n "__fish_cria_using_subcommand version" -l cgroup-driver -d 'Who owns the cgroup tree' -r -f -a "systemd\t'systemd makes a slice per pod and a scope per container, over D-Bus'
cgroupfs\t'cria and the OCI runtime make the directories themselves'
auto\t'Systemd where it is PID 1, else cgroupfs'"
complete -c cria -n "__fish_cria_using_subcommand version" -l log-level -d 'The least important messages to log' -r -f -a "error\t'Someone must act'
warn\t'And what goes on, degraded'
info\t'And every operation that changed something'
debug\t'And every query'
trace\t'And what crosses the boundaries to other processes'"
complete -c cria -n "__fish_cria_using_subcommand version" -l log-format -d 'How messages are logged' -r -f -a "text\t'For people'
json\t'One JSON object per line'"
complete -c cria -n "__fish_cria_using_subcommand version" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c cria -n "__fish_cria_using_subcommand config" -l config -d 'The configuration file; may be missing unless named here [default: /etc/cria/cria.toml]' -r -F
complete -c cria -n "__fish_cria_using_subcommand config" -l config-dir -d 'Directory of drop-ins (*.toml), read in the order of their names after the file; may be missing unless named here [default: /etc/cria/cria.toml.d]' -r -F
complete -c cria -n "__fish_cria_using_subcommand config" -l root -d 'What outlives a reboot: images, root filesystems, records' -r
complete -c cria -n "__fish_cria_using_subcommand config" -l run-dir -d 'What dies with a boot: sockets, pinned namespaces, exit records' -r
complete -c cria -n "__fish_cria_using_subcommand config" -l listen -d 'The unix socket that serves the CRI' -r
complete -c cria -n "__fish_cria_using_subcommand config" -l registries-conf -d 'Where registries, their mirrors and their trust are configured' -r
complete -c cria -n "__fish_cria_using_subcommand config" -l netns-dir -d 'Where the pods\' network namespaces are pinned' -r
complete -c cria -n "__fish_cria_using_subcommand config" -l cni-conf-dir -d 'CNI network configurations' -r
complete -c cria -n "__fish_cria_using_subcommand config" -l cni-bin-dir -d 'CNI plugins; may be repeated, the first directory that has a plugin wins' -r
complete -c cria -n "__fish_cria_using_subcommand config" -l oci-runtime -d 'The OCI runtime: a path, or a name in $PATH [default: crun if it works here, else runc]' -r
complete -c cria -n "__fish_cria_using_subcommand config" -l monitor -d 'The monitor\'s executable [default: beside cria\'s own]' -r
complete -c cria -n "__fish_cria_using_subcommand config" -l cgroup-driver -d 'Who owns the cgroup tree' -r -f -a "systemd\t'systemd makes a slice per pod and a scope per container, over D-Bus'
cgroupfs\t'cria and the OCI runtime make the directories themselves'
auto\t'Systemd where it is PID 1, else cgroupfs'"
complete -c cria -n "__fish_cria_using_subcommand config" -l log-level -d 'The least important messages to log' -r -f -a "error\t'Someone must act'
warn\t'And what goes on, degraded'
info\t'And every operation that changed something'
debug\t'And every query'
trace\t'And what crosses the boundaries to other processes'"
complete -c cria -n "__fish_cria_using_subcommand config" -l log-format -d 'How messages are logged' -r -f -a "text\t'For people'
json\t'One JSON object per line'"
complete -c cria -n "__fish_cria_using_subcommand config" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c cria -n "__fish_cria_using_subcommand check" -l config -d 'The configuration file; may be missing unless named here [default: /etc/cria/cria.toml]' -r -F
complete -c cria -n "__fish_cria_using_subcommand check" -l config-dir -d 'Directory of drop-ins (*.toml), read in the order of their names after the file; may be missing unless named here [default: /etc/cria/cria.toml.d]' -r -F
complete -c cria -n "__fish_cria_using_subcommand check" -l root -d 'What outlives a reboot: images, root filesystems, records' -r
complete -c cria -n "__fish_cria_using_subcommand check" -l run-dir -d 'What dies with a boot: sockets, pinned namespaces, exit records' -r
complete -c cria -n "__fish_cria_using_subcommand check" -l listen -d 'The unix socket that serves the CRI' -r
complete -c cria -n "__fish_cria_using_subcommand check" -l registries-conf -d 'Where registries, their mirrors and their trust are configured' -r
complete -c cria -n "__fish_cria_using_subcommand check" -l netns-dir -d 'Where the pods\' network namespaces are pinned' -r
complete -c cria -n "__fish_cria_using_subcommand check" -l cni-conf-dir -d 'CNI network configurations' -r
complete -c cria -n "__fish_cria_using_subcommand check" -l cni-bin-dir -d 'CNI plugins; may be repeated, the first directory that has a plugin wins' -r
complete -c cria -n "__fish_cria_using_subcommand check" -l oci-runtime -d 'The OCI runtime: a path, or a name in $PATH [default: crun if it works here, else runc]' -r
complete -c cria -n "__fish_cria_using_subcommand check" -l monitor -d 'The monitor\'s executable [default: beside cria\'s own]' -r
complete -c cria -n "__fish_cria_using_subcommand check" -l cgroup-driver -d 'Who owns the cgroup tree' -r -f -a "systemd\t'systemd makes a slice per pod and a scope per container, over D-Bus'
cgroupfs\t'cria and the OCI runtime make the directories themselves'
auto\t'Systemd where it is PID 1, else cgroupfs'"
complete -c cria -n "__fish_cria_using_subcommand check" -l log-level -d 'The least important messages to log' -r -f -a "error\t'Someone must act'
warn\t'And what goes on, degraded'
info\t'And every operation that changed something'
debug\t'And every query'
trace\t'And what crosses the boundaries to other processes'"
complete -c cria -n "__fish_cria_using_subcommand check" -l log-format -d 'How messages are logged' -r -f -a "text\t'For people'
json\t'One JSON object per line'"
complete -c cria -n "__fish_cria_using_subcommand check" -l json -d 'Print one JSON object: `version`, and `findings`'
complete -c cria -n "__fish_cria_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c cria -n "__fish_cria_using_subcommand status" -l config -d 'The configuration file; may be missing unless named here [default: /etc/cria/cria.toml]' -r -F
complete -c cria -n "__fish_cria_using_subcommand status" -l config-dir -d 'Directory of drop-ins (*.toml), read in the order of their names after the file; may be missing unless named here [default: /etc/cria/cria.toml.d]' -r -F
complete -c cria -n "__fish_cria_using_subcommand status" -l root -d 'What outlives a reboot: images, root filesystems, records' -r
complete -c cria -n "__fish_cria_using_subcommand status" -l run-dir -d 'What dies with a boot: sockets, pinned namespaces, exit records' -r
complete -c cria -n "__fish_cria_using_subcommand status" -l listen -d 'The unix socket that serves the CRI' -r
complete -c cria -n "__fish_cria_using_subcommand status" -l registries-conf -d 'Where registries, their mirrors and their trust are configured' -r
complete -c cria -n "__fish_cria_using_subcommand status" -l netns-dir -d 'Where the pods\' network namespaces are pinned' -r
complete -c cria -n "__fish_cria_using_subcommand status" -l cni-conf-dir -d 'CNI network configurations' -r
complete -c cria -n "__fish_cria_using_subcommand status" -l cni-bin-dir -d 'CNI plugins; may be repeated, the first directory that has a plugin wins' -r
complete -c cria -n "__fish_cria_using_subcommand status" -l oci-runtime -d 'The OCI runtime: a path, or a name in $PATH [default: crun if it works here, else runc]' -r
complete -c cria -n "__fish_cria_using_subcommand status" -l monitor -d 'The monitor\'s executable [default: beside cria\'s own]' -r
complete -c cria -n "__fish_cria_using_subcommand status" -l cgroup-driver -d 'Who owns the cgroup tree' -r -f -a "systemd\t'systemd makes a slice per pod and a scope per container, over D-Bus'
cgroupfs\t'cria and the OCI runtime make the directories themselves'
auto\t'Systemd where it is PID 1, else cgroupfs'"
complete -c cria -n "__fish_cria_using_subcommand status" -l log-level -d 'The least important messages to log' -r -f -a "error\t'Someone must act'
warn\t'And what goes on, degraded'
info\t'And every operation that changed something'
debug\t'And every query'
trace\t'And what crosses the boundaries to other processes'"
complete -c cria -n "__fish_cria_using_subcommand status" -l log-format -d 'How messages are logged' -r -f -a "text\t'For people'
json\t'One JSON object per line'"
complete -c cria -n "__fish_cria_using_subcommand status" -l json -d 'Print one JSON object: `version`, `conditions` and `images`'
complete -c cria -n "__fish_cria_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
