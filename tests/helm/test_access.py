"""The pods' access to the node, to Secrets and to the account."""

from __future__ import annotations

from tests.helm.conftest import Install, Installed
from tests.helm.releases import mounts, volume


def test_nothing_of_the_node_by_default(default: Installed) -> None:
    assert "hostPID" not in default.pod
    assert "initContainers" not in default.pod
    assert not [volume for volume in default.pod["volumes"] if "hostPath" in volume]
    assert "/dev/shm" not in mounts(default).values()


def test_host_pid(install: Install) -> None:
    assert install({"hostAccess": {"hostPID": True}}).pod["hostPID"] is True


def test_shared_memory(install: Install) -> None:
    release = install({"hostAccess": {"sharedMemory": True}})
    assert volume(release, "shared-memory")["hostPath"]["path"] == "/dev/shm"
    assert mounts(release)["shared-memory"] == "/dev/shm"


def test_the_socket_is_there_for_the_pod_alone_by_default(default: Installed) -> None:
    path = default.settings["listen"][1].removeprefix("unix:")
    assert path.startswith(f"{mounts(default)['socket']}/")
    assert "emptyDir" in volume(default, "socket")
    assert default.settings["unix_socket_mode"] == "600"


def test_the_socket_on_the_node(install: Install) -> None:
    access = {"unixSocket": True, "unixSocketFolder": "/run/x"}
    release = install({"hostAccess": access, "unixSocketMode": "660", "unixSocketOwner": ":2000"})
    assert volume(release, "socket")["hostPath"] == {"path": "/run/x", "type": "DirectoryOrCreate"}
    assert release.settings["unix_socket_mode"] == "660"
    assert release.settings["unix_socket_owner"] == ":2000"
    (first,) = release.pod["initContainers"]
    assert first["command"] == ["chown", "10001:10001", mounts(release)["socket"]]
    assert first["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert first["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_sockets_folder_may_exist_already(install: Install) -> None:
    release = install({"hostAccess": {"unixSocket": True, "prepareUnixSocketFolder": False}})
    assert "initContainers" not in release.pod


def test_tls(install: Install) -> None:
    release = install({"tls": {"secretName": "cert", "clientCASecretName": "clients"}})
    paths = {name: release.settings[name] for name in ("tls_cert", "tls_key", "tls_client_ca")}
    assert paths == {
        "tls_cert": f"{mounts(release)['tls']}/tls.crt",
        "tls_key": f"{mounts(release)['tls']}/tls.key",
        "tls_client_ca": f"{mounts(release)['client-ca']}/ca.crt",
    }
    assert volume(release, "tls")["secret"]["secretName"] == "cert"
    client_ca = volume(release, "client-ca")["secret"]
    assert client_ca["secretName"] == "clients"
    assert client_ca["items"] == [{"key": "ca.crt", "path": "ca.crt"}]  # of a Secret that may also hold a key


def test_tenants(install: Install) -> None:
    release = install(
        {"tenants": {"secretName": "tenants-secret", "key": "tenants.yaml"}, "tls": {"secretName": "cert"}}
    )
    assert release.settings["tenants"] == f"{mounts(release)['tenants']}/tenants.yaml"
    assert volume(release, "tenants")["secret"]["secretName"] == "tenants-secret"


def test_secrets_are_read_only_and_for_the_pods_group(install: Install) -> None:
    release = install({"tls": {"secretName": "a", "clientCASecretName": "b"}, "tenants": {"secretName": "c"}})
    names = [found["name"] for found in release.pod["volumes"] if "secret" in found]
    assert len(names) == 3
    for name in names:
        assert volume(release, name)["secret"]["defaultMode"] == 0o440
        (mount,) = [mount for mount in release.container["volumeMounts"] if mount["name"] == name]
        assert mount["readOnly"] is True
        assert "subPath" not in mount


def test_no_tls_and_no_tenants_by_default(default: Installed) -> None:
    assert not {"tls_cert", "tls_key", "tls_client_ca", "tenants"} & default.settings.keys()


def test_the_account(install: Install, default: Installed) -> None:
    assert default["ServiceAccount"]["automountServiceAccountToken"] is False
    assert default.pod["automountServiceAccountToken"] is False
    named = install({"serviceAccount": {"name": "depot", "annotations": {"a": "b"}}})
    assert named.pod["serviceAccountName"] == named["ServiceAccount"]["metadata"]["name"] == "depot"
    assert named["ServiceAccount"]["metadata"]["annotations"] == {"a": "b"}
    theirs = install({"serviceAccount": {"create": False, "name": "theirs"}})
    assert not theirs.of("ServiceAccount")
    assert theirs.pod["serviceAccountName"] == "theirs"
    assert install({"serviceAccount": {"create": False}}).pod["serviceAccountName"] == "default"
