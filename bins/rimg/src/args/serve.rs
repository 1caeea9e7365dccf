//! The option table of `serve`: names and letters are those of qemu-nbd 10.0.

use super::commands::{
    ALLOW, CACHE_MODES, FORMAT, HELP, IMAGE, IMAGE_OPTS, OBJECT, QUIET, SANDBOX,
};
use super::table::{Command, flag, val};

/// The command.
pub const SERVE: Command = Command {
    name: "serve",
    about: "Export an image over the network (NBD server)",
    details: "Offers the guest's disk of an image of any format, with all that lies below it, to NBD \
        clients: the kernel's nbd-client, nbdcopy, QEMU, rimg itself. Clients may write to it \
        unless -r or -l is given. Without --tls-creds there is no encryption and no password: whoever \
        reaches the address has the disk, so it is the loopback address unless -b names another, and a \
        UNIX socket (-k) is safer still. With --tls-creds ID (and --object tls-creds-x509,id=ID,\
        dir=FOLDER,endpoint=server) clients come over TLS only, and need a certificate that the \
        authority in FOLDER/ca-cert.pem has signed, unless the object says verify-peer=off. A socket that systemd or libnbd has opened (LISTEN_FDS) is taken instead of one of our \
        own. SIGTERM and SIGINT end the server; the image is then flushed and closed.",
    positionals: &[IMAGE],
    opts: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        flag(Some('r'), "read-only", "Offer the disk for reading only"),
        val(Some('l'), "load-snapshot", "SNAPSHOT", "Offer an internal snapshot, for reading only"),
        val(Some('k'), "socket", "PATH", "Listen at a UNIX socket").under("Connections"),
        val(Some('b'), "bind", "ADDRESS", "Listen at this address (default 127.0.0.1)")
            .under("Connections"),
        val(Some('p'), "port", "PORT", "Listen at this TCP port (default 10809; 0: any free one)")
            .under("Connections"),
        val(Some('x'), "export-name", "NAME", "Name of the export (default: the empty name)")
            .under("Connections"),
        val(Some('D'), "description", "TEXT", "Describe the export to people").under("Connections"),
        val(Some('e'), "shared", "NUM", "Clients at a time (default 1; 0: up to 256)")
            .under("Connections"),
        flag(Some('t'), "persistent", "Go on when the last client has left").under("Connections"),
        val(
            None,
            "handshake-limit",
            "N",
            "Seconds for a client to agree upon an export (default 10)",
        )
        .under("Connections"),
        val(
            None,
            "tls-creds",
            "ID",
            "Let clients come over TLS only, with the credentials of this object",
        )
        .under("Connections"),
        flag(Some('A'), "allocation-depth", "Tell clients which image of the chain has a range")
            .under("Metadata"),
        val(Some('B'), "bitmap", "NAME", "Tell clients what a persistent bitmap says is dirty")
            .under("Metadata"),
        val(None, "cache", "MODE", "Cache mode of the image (default writeback)")
            .values(CACHE_MODES)
            .under("Disk"),
        flag(Some('n'), "nocache", "As --cache=none").under("Disk"),
        val(None, "discard", "MODE", "What becomes of discards (default unmap)")
            .values(&["ignore", "unmap"])
            .under("Disk"),
        val(None, "detect-zeroes", "MODE", "Turn written zeroes into holes (default off)")
            .values(&["off", "on", "unmap"])
            .under("Disk"),
        flag(None, "fork", "Go on in the background once clients can connect").under("Process"),
        val(None, "pid-file", "PATH", "Write the server's process ID to PATH").under("Process"),
        flag(None, "in-background", "The server process of --fork").hidden(),
        val(None, "tls-authz", "ID", "Not supported").hidden(),
        val(None, "tls-hostname", "NAME", "Not supported").hidden(),
        QUIET,
        OBJECT,
        ALLOW,
        SANDBOX,
    ],
    examples: &[
        ("rimg serve -r -t -e 0 -k /run/disk.sock disk.qcow2", "For any number of local readers"),
        (
            "rimg serve -f qcow2 -x disk --fork --pid-file /run/d.pid disk.qcow2",
            "In the background",
        ),
        ("rimg serve -p 0 disk.vmdk", "Any free port; it is printed"),
        (
            "rimg serve -b 0.0.0.0 -e 0 -t --object tls-creds-x509,id=t,dir=/etc/pki/rimg,endpoint=server \
             --tls-creds t disk.qcow2",
            "To other hosts, over TLS",
        ),
        (
            "nbdcopy -- [ rimg serve -r disk.vmdk ] disk.raw",
            "Started by its client, and ended with it",
        ),
    ],
    exit_codes: &[],
};
