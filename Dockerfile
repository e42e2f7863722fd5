# CoVeR on a CPU.
#
#   docker build -t cover .
#   docker run --rm -it --shm-size 2g --user "$(id -u)" -v "$PWD:/data" cover fit clips/ --out runs/mine
#   docker run --rm -p 8000:8000 -v "$PWD:/data" cover serve runs/mine --host 0.0.0.0
#
# /data is the working folder. Readers hand frames over in shared memory, of which Docker gives only 64 MB by default.

FROM python:3.12-slim-bookworm

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/tmp/cache
WORKDIR /opt/cover

# PyTorch first: its default build would bring CUDA, and this layer stays when only the package changes.
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu

COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt '.[start,serve,export]' \
    && useradd --uid 10001 --create-home cover

USER 10001
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["cover"]
CMD ["--help"]
