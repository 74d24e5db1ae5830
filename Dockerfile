# reflow-chain in a container, from the users' lock (docs/how-to/docker.md):
#   docker build -t reflow-chain .
#   docker build -t reflow-chain:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm AS build
# The index that torch comes from, by itself and first: its CPU build, unless another is named.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY requirements.lock requirements-dev.lock pyproject.toml README.md LICENSE ./
COPY scripts/setup.sh scripts/
COPY .dvc .dvc
COPY .dvcignore .gitignore dvc.yaml params.schema.json prefect.yaml ./
COPY params params
COPY docs docs
COPY flows flows
COPY fmcore fmcore
# setup.sh installs torch, then the lock without dependencies, so that none replaces torch. The wheel
# takes the place of the editable installation, whose source does not come along.
RUN TORCH_INDEX="${TORCH_INDEX}" VENV=/opt/reflow bash scripts/setup.sh \
    && /opt/reflow/bin/python -m pip install --no-cache-dir --no-deps --force-reinstall .

FROM python:${PYTHON}-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 reflow \
    && install -d -o reflow /projects
COPY --from=build /opt/reflow /opt/reflow
COPY requirements.lock /opt/reflow/
# What is installed on top (`pip install --user`, an image FROM this one) keeps torch and the rest.
ENV PATH=/opt/reflow/bin:$PATH PIP_CONSTRAINT=/opt/reflow/requirements.lock
USER 1000
WORKDIR /projects
ENTRYPOINT ["reflow"]
CMD ["--help"]
