"""A real S3 server on loopback (moto's) that checks credentials, and a user who may use it."""

import json
import logging
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "couplings"


@dataclass(frozen=True)
class S3:
    """Where the server listens, and the credentials of its user."""

    url: str
    key: str
    secret: str

    def env(self) -> Mapping[str, str]:
        """The environment of a person with the credentials."""
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}


@contextmanager
def serving() -> Iterator[S3]:
    """Serve an empty bucket while the block runs; requests without credentials are refused."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    try:
        first = dict(
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="first",
            aws_secret_access_key="first",
        )
        boto3.client("s3", **first).create_bucket(Bucket=BUCKET)
        iam = boto3.client("iam", **first)
        user = (
            f"lab-{server.get_host_and_port()[1]}"  # moto keeps users as long as the process lives
        )
        iam.create_user(UserName=user)
        allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = {"Version": "2012-10-17", "Statement": [allowed]}
        iam.put_user_policy(UserName=user, PolicyName="s3", PolicyDocument=json.dumps(policy))
        made = iam.create_access_key(UserName=user)["AccessKey"]
        _let_in_freely(url, "0")
        yield S3(url, made["AccessKeyId"], made["SecretAccessKey"])
    finally:
        _let_in_freely(url, "inf")
        server.stop()


def _let_in_freely(url: str, requests: str) -> None:
    """Let moto take so many requests before it checks credentials."""
    request = urllib.request.Request(f"{url}/moto-api/reset-auth", data=requests.encode())
    request.add_header("Content-Type", "text/plain")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()
