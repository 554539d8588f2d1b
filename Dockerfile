# docker compose up --build    or: docker build -t vigild .
#
# BASE may be any image with Python 3.11 or newer, its venv module and glibc.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /src
# Where torch is taken from, see install/cpu_torch.py. Settings of pip's own, such as another index, may be given as a
# secret, which stays out of the image: --secret id=pip,src=pip.conf
ARG TORCH_INDEX
RUN python3 -m venv /opt/vigild
COPY constraints.txt ./
COPY install/cpu_torch.sh install/cpu_torch.py install/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    PIP_NO_CACHE_DIR=1 sh install/cpu_torch.sh /opt/vigild/bin/python
COPY pyproject.toml README.md LICENSE ./
COPY daemon daemon
COPY actors actors
COPY detection detection
COPY persistence persistence
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/vigild/bin/python -m pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt .

FROM ${BASE}
# Numbers, because senders name the group by its: who may write to the log socket is in group 991.
RUN groupadd --gid 990 vigild && groupadd --gid 991 vigild-log \
    && useradd --uid 990 --gid vigild --no-create-home --home-dir /var/lib/vigild --shell /usr/sbin/nologin vigild \
    && install -d -o vigild -g vigild -m 700 /var/lib/vigild \
    && install -d -o vigild -g vigild-log -m 2750 /run/vigild-log
COPY --from=build /opt/vigild /opt/vigild
COPY install/container.toml /etc/vigild/vigild.toml
# admin.sock lies in /tmp, which is a tmpfs when the root is read-only: nobody else is in the container.
ENV PATH=/opt/vigild/bin:$PATH \
    STATE_DIRECTORY=/var/lib/vigild \
    RUNTIME_DIRECTORY=/tmp/vigild
USER vigild
VOLUME ["/var/lib/vigild", "/run/vigild-log"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=10m --retries=3 \
    CMD ["/opt/vigild/bin/python", "-m", "daemon.healthcheck"]
CMD ["/opt/vigild/bin/vigild"]
