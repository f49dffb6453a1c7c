"""A Hugging Face Hub on the loopback address: repositories in memory, for the real huggingface_hub client.

It has the routes and headers that huggingface_hub uses to make repositories, upload, list and download, and faults that
a test switches on. Files ending in .safetensors or .bin are LFS files: uploaded by the batch endpoint, downloaded
through a redirect to another host, as from the Hub's CDN.
"""

import base64
import hashlib
import json
import re
import threading
import time
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = 'hf_loopback'  # the token that may write


def is_lfs(path: str) -> bool:
    return path.endswith(('.safetensors', '.bin'))


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def oid_of(path: str, content: bytes) -> str:
    """The name that the Hub has for a file, and sends as its ETag."""
    return hashlib.sha256(content).hexdigest() if is_lfs(path) else git_oid(content)


@dataclass
class Commit:
    oid: str
    files: dict[str, bytes]


@dataclass
class Repo:
    commits: list[Commit] = field(default_factory=list)
    refs: dict[str, Commit] = field(default_factory=dict)  # branches and tags

    def commit(self, files: Mapping[str, bytes], branch: str = 'main') -> Commit:
        commit = Commit(hashlib.sha1(f'{len(self.commits)}{sorted(files)}'.encode()).hexdigest(), dict(files))
        self.commits.append(commit)
        self.refs[branch] = commit
        return commit

    def find(self, revision: str) -> Commit | None:
        return self.refs.get(revision) or next((c for c in self.commits if c.oid == revision), None)


@dataclass
class Fault:
    """A failure of the first `times` requests whose path contains `path`."""

    path: str
    times: float
    methods: tuple[str, ...]
    status: int = 0  # answer with this
    error_code: str | None = None
    cut_after: int | None = None  # send so many bytes of the content, then close the connection
    corrupt: bool = False  # send other bytes than the ETag says
    content: bytes | None = None  # send this instead
    headers: Mapping[str, str] = field(default_factory=dict)  # send these instead, or beside the Hub's own


class LoopbackHub:
    """`with LoopbackHub() as hub`; `hub.endpoint` is what HF_ENDPOINT is to be."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.collections: dict[str, dict[str, Any]] = {}  # by slug, as the Hub answers
        self.gated: set[str] = set()
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []  # 'GET /lab/model/resolve/main/config.json'
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
        self.server.daemon_threads = True
        self.server.hub = self  # type: ignore[attr-defined]
        self.endpoint = f'http://127.0.0.1:{self.server.server_port}'

    def __enter__(self) -> 'LoopbackHub':
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on connections are refused."""
        self.server.shutdown()
        self.server.server_close()

    def add(self, repo_id: str, files: Path | Mapping[str, bytes], revision: str = 'main') -> str:
        """A commit of a folder or of files by name, on a branch; returns its hash."""
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob('*') if p.is_file()}
        return self.repos.setdefault(repo_id, Repo()).commit(files, revision).oid

    def files(self, repo_id: str, revision: str = 'main') -> dict[str, bytes]:
        commit = self.repos[repo_id].find(revision)
        assert commit, f'{repo_id} has no revision {revision}'
        return commit.files

    @contextmanager
    def fault(
        self, path: str, times: float = float('inf'), methods: tuple[str, ...] = (), **what: Any
    ) -> Iterator[Fault]:
        """See `Fault`; no methods are all."""
        fault = Fault(path, times, methods, **what)
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)

    def environment(self, home: Path) -> dict[str, str]:
        """Environment variables with which a child process uses this Hub, and a cache of its own."""
        return {
            'HF_ENDPOINT': self.endpoint,
            'HF_HOME': str(home),
            'HF_HUB_DISABLE_XET': '1',
            'HF_HUB_DISABLE_TELEMETRY': '1',
            'HF_TOKEN': TOKEN,
        }

    def use_in_process(self, monkeypatch: Any, home: Path) -> None:
        """The same for this process, where huggingface_hub has read its environment already."""
        constants = 'huggingface_hub.constants'
        template = self.endpoint + '/{repo_id}/resolve/{revision}/{filename}'
        monkeypatch.setattr(f'{constants}.ENDPOINT', self.endpoint)
        monkeypatch.setattr(f'{constants}.HUGGINGFACE_CO_URL_TEMPLATE', template)
        monkeypatch.setattr('huggingface_hub.hf_api.api.endpoint', self.endpoint)
        monkeypatch.setattr(f'{constants}.HF_HOME', str(home))
        monkeypatch.setattr(f'{constants}.HF_HUB_CACHE', str(home / 'hub'))
        monkeypatch.setattr(f'{constants}.HF_TOKEN_PATH', str(home / 'token'))
        monkeypatch.setattr(f'{constants}.HF_HUB_DISABLE_XET', True)
        monkeypatch.setattr(f'{constants}.HF_HUB_DISABLE_TELEMETRY', True)
        monkeypatch.setenv('HF_TOKEN', TOKEN)
        hurried = types.SimpleNamespace(**{**vars(time), 'sleep': lambda seconds: None})
        for module in ('utils._http', 'file_download'):  # which wait for up to 23 seconds between their attempts
            monkeypatch.setattr(f'huggingface_hub.{module}.time', hurried)


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_PATCH(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    @property
    def hub(self) -> LoopbackHub:
        return self.server.hub  # type: ignore[attr-defined]

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.route, self.query = unquote(url.path), parse_qs(url.query)
        self.body = self._read_body()
        self.fault: Fault | None = None
        with self.hub.lock:
            self.hub.requests.append(f'{self.command} {self.route}')
            for fault in self.hub.faults:
                if fault.path in self.route and self.command in (fault.methods or (self.command,)) and fault.times > 0:
                    fault.times -= 1
                    self.fault = fault
                    break
        if self.fault and self.fault.status:
            self._error(self.fault.status, self.fault.error_code, 'switched on by a test')
            return
        for pattern, methods, handle in ROUTES:
            if self.command in methods and (match := re.fullmatch(pattern, self.route)):
                if handle in WRITES and self.headers.get('Authorization') != f'Bearer {TOKEN}':
                    self._error(401, None, 'Invalid username or password.')
                else:
                    handle(self, *match.groups())
                return
        self._error(404, None, 'no such route')

    def _read_body(self) -> bytes:
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length', 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b''.join(chunks)

    def _send(self, status: int, headers: Mapping[str, str], content: bytes = b'') -> None:
        headers = {'Content-Length': str(len(content)), **headers}
        if self.fault:
            if self.fault.content is not None:
                content = self.fault.content
                headers['Content-Length'] = str(len(content))
            headers |= self.fault.headers
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            if self.fault and self.fault.cut_after is not None:
                content = content[: self.fault.cut_after]
            self.wfile.write(content)

    def _json(self, answer: Any, status: int = 200) -> None:
        self._send(status, {'Content-Type': 'application/json'}, json.dumps(answer).encode())

    def _error(self, status: int, code: str | None, message: str, **headers: str) -> None:
        codes = {'X-Error-Code': code} if code else {}
        content = json.dumps({'error': message}).encode()
        self._send(
            status, {'Content-Type': 'application/json', 'X-Error-Message': message, **codes, **headers}, content
        )

    def _find(self, repo_id: str, revision: str) -> Commit | None:
        """The commit; None if an error has been answered."""
        repo = self.hub.repos.get(repo_id)
        if repo is None:  # the Hub does not tell strangers what is private and what is not there
            self._error(401, 'RepoNotFound', 'Invalid username or password.')
            return None
        if repo_id in self.hub.gated:
            self._error(403, 'GatedRepo', f'Access to model {repo_id} is restricted')
            return None
        commit = repo.find(revision)
        if commit is None:
            self._error(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        return commit

    def whoami(self) -> None:
        if self.headers.get('Authorization') == f'Bearer {TOKEN}':
            self._json({'type': 'user', 'name': 'lab', 'fullname': 'Lab', 'orgs': [], 'auth': {}})
        else:
            self._error(401, None, 'Invalid credentials in Authorization header')

    def create_repo(self) -> None:
        asked = json.loads(self.body)
        repo_id = f'{asked.get("organization") or "lab"}/{asked["name"]}'
        answer = {'url': f'{self.hub.endpoint}/{repo_id}', 'name': repo_id}
        if repo_id in self.hub.repos:
            self._json({**answer, 'error': 'You already created this model repo'}, 409)
            return
        self.hub.repos[repo_id] = Repo()
        self.hub.repos[repo_id].commit({})
        self._json(answer)

    def validate_yaml(self) -> None:
        """What the Hub says of the head of a card: status 400 for what it does not take."""
        asked = json.loads(self.body)
        match = re.match(r'---\n(.*?)\n---\n', asked['content'], re.DOTALL)
        try:
            head = yaml.safe_load(match[1]) if match else None
            errors = _wrong_in_card(head, asked['repoType']) if isinstance(head, dict) else ['no YAML head']
        except yaml.YAMLError as error:
            errors = [str(error)]
        if errors:
            self._send(400, {'Content-Type': 'text/plain'}, '; '.join(errors).encode())
        else:
            self._json({'errors': [], 'warnings': []})

    def create_branch(self, repo_id: str, branch: str) -> None:
        if start := self._find(repo_id, 'main'):
            if branch in self.hub.repos[repo_id].refs:
                self._error(409, None, 'Reference already exists')
            else:
                self.hub.repos[repo_id].refs[branch] = start
                self._json({})

    def list_collections(self) -> None:
        (owner,) = self.query['owner']
        found = [c for c in self.hub.collections.values() if c['owner']['name'] == owner]
        self._json([{key: value for key, value in c.items() if key != 'position'} for c in found])

    def create_collection(self) -> None:
        asked = json.loads(self.body)
        title = re.sub(r'\W+', '-', asked['title'].lower())
        slug = f'{asked["namespace"]}/{title}-{"0" * 24}'
        self.hub.collections[slug] = {
            'slug': slug,
            'title': asked['title'],
            'description': asked.get('description'),
            'owner': {'name': asked['namespace']},
            'items': [],
            'lastUpdated': '2026-01-01T00:00:00.000Z',
            'position': 0,
            'private': asked['private'],
            'theme': 'blue',
            'upvotes': 0,
        }
        self._json(self.hub.collections[slug])

    def collection(self, slug: str) -> None:
        if slug not in self.hub.collections:
            self._error(404, None, 'Collection not found')
            return
        found = self.hub.collections[slug]
        if self.command == 'PATCH':
            found |= json.loads(self.body)
        self._json({'data': found} if self.command == 'PATCH' else found)

    def add_to_collection(self, slug: str) -> None:
        asked, found = json.loads(self.body), self.hub.collections[slug]
        if asked['item']['id'] not in self.hub.repos:
            self._error(404, None, 'no such repository')
            return
        number = len(found['items'])
        note = {'note': {'text': asked['note']}} if 'note' in asked else {}
        found['items'].append({'_id': f'item{number}', **asked['item'], 'position': number, **note})
        self._json(found)

    def note_in_collection(self, slug: str, item: str) -> None:
        (found,) = (i for i in self.hub.collections[slug]['items'] if i['_id'] == item)
        found['note'] = {'text': json.loads(self.body)['note']}
        self._json({})

    def list_models(self) -> None:
        (author,) = self.query.get('author', [''])
        names = [name for name in self.hub.repos if name.startswith(f'{author}/') or not author]
        self._json([{'id': name, 'modelId': name, 'private': False, 'tags': []} for name in names])

    def refs(self, repo_id: str) -> None:
        if self._find(repo_id, 'main'):
            refs = self.hub.repos[repo_id].refs.items()
            branches = [{'name': n, 'ref': f'refs/heads/{n}', 'targetCommit': c.oid} for n, c in refs]
            self._json({'branches': branches, 'tags': [], 'converts': []})

    def model_info(self, repo_id: str, revision: str | None) -> None:
        if commit := self._find(repo_id, revision or 'main'):
            siblings = [{'rfilename': file['path']} for file in _listing(commit)]
            if 'blobs' in self.query:
                for sibling, file in zip(siblings, _listing(commit), strict=True):
                    lfs = file.get('lfs') and {**file['lfs'], 'sha256': file['lfs']['oid']}
                    sibling.update(size=file['size'], blobId=file['oid'], lfs=lfs)
            info = {'id': repo_id, 'modelId': repo_id, 'sha': commit.oid, 'private': False, 'tags': []}
            self._json({**info, 'gated': False, 'disabled': False, 'siblings': siblings})

    def tree(self, repo_id: str, revision: str, folder: str | None) -> None:
        if commit := self._find(repo_id, revision):
            self._json([f for f in _listing(commit) if not folder or f['path'].startswith(f'{folder}/')])

    def paths_info(self, repo_id: str, revision: str) -> None:
        if commit := self._find(repo_id, revision):
            asked = parse_qs(self.body.decode())['paths']
            self._json([f for f in _listing(commit) if f['path'] in asked])

    def preupload(self, repo_id: str, revision: str) -> None:
        if commit := self._find(repo_id, revision):
            answers = []
            for file in json.loads(self.body)['files']:
                path = file['path']
                old = commit.files.get(path)
                mode = 'lfs' if is_lfs(path) else 'regular'
                oid = {} if old is None else {'oid': oid_of(path, old)}
                answers.append({'path': path, 'uploadMode': mode, 'shouldIgnore': False, **oid})
            self._json({'files': answers})

    def lfs_batch(self, repo_id: str) -> None:
        if self._find(repo_id, 'main'):
            objects = []
            for file in json.loads(self.body)['objects']:
                upload = {'href': f'{self.hub.endpoint}/lfs/{file["oid"]}'}
                actions = {'upload': upload, 'verify': {'href': f'{self.hub.endpoint}/verify'}}
                known = file['oid'] in self.hub.lfs
                objects.append({'oid': file['oid'], 'size': file['size'], **({} if known else {'actions': actions})})
            self._json({'transfer': 'basic', 'objects': objects})

    def lfs_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._error(400, None, 'the content does not have this SHA-256')
            return
        self.hub.lfs[oid] = self.body
        self._send(200, {})

    def lfs_verify(self) -> None:
        asked = json.loads(self.body)
        if len(self.hub.lfs.get(asked['oid'], b'')) == asked['size']:
            self._json({})
        else:
            self._error(404, None, 'not uploaded')

    def commit(self, repo_id: str, branch: str) -> None:
        if parent := self._find(repo_id, branch):
            files = dict(parent.files)
            for line in map(json.loads, self.body.splitlines()):
                key, value = line['key'], line['value']
                if key == 'file':
                    files[value['path']] = base64.b64decode(value['content'])
                elif key == 'lfsFile':
                    if value['oid'] not in self.hub.lfs:
                        self._error(400, None, f'{value["path"]} has not been uploaded')
                        return
                    files[value['path']] = self.hub.lfs[value['oid']]
                elif key == 'deletedFile':
                    del files[value['path']]
            is_pull_request = 'create_pr' in self.query
            commit = self.hub.repos[repo_id].commit(files, 'refs/pr/1' if is_pull_request else branch)
            url = f'{self.hub.endpoint}/{repo_id}'
            pull = {'pullRequestUrl': f'{url}/discussions/1'} if is_pull_request else {}
            done = {'success': True, 'commitUrl': f'{url}/commit/{commit.oid}', 'commitOid': commit.oid, **pull}
            self._json({**done, 'hookOutput': ''})

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        commit = self._find(repo_id, revision)
        if commit is None:
            return
        if path not in commit.files:
            self._error(404, 'EntryNotFound', 'Entry not found', **{'X-Repo-Commit': commit.oid})
            return
        content = commit.files[path]
        etag = f'"{oid_of(path, content)}"'
        headers = {'X-Repo-Commit': commit.oid, 'Accept-Ranges': 'bytes'}
        if is_lfs(path):
            location = f'http://localhost:{self.server.server_port}/cdn/{repo_id}/{commit.oid}/{path}'  # type: ignore[attr-defined]
            linked = {'X-Linked-ETag': etag, 'X-Linked-Size': str(len(content)), 'Location': location}
            self._send(302, {**headers, **linked})
        else:
            self._content(content, {**headers, 'ETag': etag})

    def cdn(self, repo_id: str, revision: str, path: str) -> None:
        self._content(self.hub.files(repo_id, revision)[path], {'Accept-Ranges': 'bytes'})

    def _content(self, content: bytes, headers: Mapping[str, str]) -> None:
        if self.fault and self.fault.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        if start:
            first, size = int(start[1]), len(content)
            self._send(206, {**headers, 'Content-Range': f'bytes {first}-{size - 1}/{size}'}, content[first:])
        else:
            self._send(200, headers, content)


def _listing(commit: Commit) -> list[dict[str, Any]]:
    listing = []
    for path, content in commit.files.items():
        file = {'type': 'file', 'path': path, 'size': len(content), 'oid': git_oid(content)}
        if is_lfs(path):
            file['lfs'] = {'oid': oid_of(path, content), 'size': len(content), 'pointerSize': 134}
        listing.append(file)
    return listing


def _wrong_in_card(head: dict[str, Any], kind: str) -> list[str]:
    """Some of the rules of the Hub: types of the fields it reads, licences it knows, and what a Space needs."""
    texts = ('license', 'pretty_name', 'pipeline_tag', 'library_name', 'title', 'sdk', 'app_file')
    wrong = [f'"{key}" must be a string' for key in texts if key in head and not isinstance(head[key], str)]
    if kind != 'space' and head.get('license') not in LICENSES:
        wrong.append('"license" must be one of the list')
    tags = head.get('tags', [])
    if not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        wrong.append('"tags" must be an array of strings')
    for model in head.get('model-index', []):
        for result in model['results']:
            if not {'task', 'dataset', 'metrics'} <= result.keys() or 'type' not in result['dataset']:
                wrong.append('"model-index[0].results[0]" needs task, dataset and metrics')
            elif not re.fullmatch(r'[\w./-]+', result['dataset']['type']):
                wrong.append('"dataset.type" must be an identifier')
    if kind == 'space' and not ({'title', 'sdk'} <= head.keys() and head['sdk'] in ('gradio', 'docker', 'static')):
        wrong.append('"title" and "sdk" are required')
    return wrong


LICENSES = (
    'apache-2.0',
    'mit',
    'bsd-3-clause',
    'cc-by-4.0',
    'cc-by-sa-4.0',
    'cc-by-nc-4.0',
    'cc0-1.0',
    'other',
    'unknown',
)
_SLUG = r'([\w.-]+/[\w.-]+)'
_REPO = r'([\w.-]+/[\w.-]+)'
ROUTES: tuple[tuple[str, tuple[str, ...], Any], ...] = (
    ('/api/whoami-v2', ('GET',), _Handler.whoami),
    ('/api/repos/create', ('POST',), _Handler.create_repo),
    ('/api/validate-yaml', ('POST',), _Handler.validate_yaml),
    ('/api/collections', ('GET',), _Handler.list_collections),
    ('/api/collections', ('POST',), _Handler.create_collection),
    (f'/api/collections/{_SLUG}', ('GET', 'PATCH'), _Handler.collection),
    (f'/api/collections/{_SLUG}/items', ('POST',), _Handler.add_to_collection),
    (f'/api/collections/{_SLUG}/items/([^/]+)', ('PATCH',), _Handler.note_in_collection),
    ('/api/models', ('GET',), _Handler.list_models),
    (f'/api/models/{_REPO}/branch/(.+)', ('POST',), _Handler.create_branch),
    (f'/api/models/{_REPO}/refs', ('GET',), _Handler.refs),
    (f'/api/models/{_REPO}(?:/revision/([^/]+))?', ('GET',), _Handler.model_info),
    (f'/api/models/{_REPO}/tree/([^/]+)(?:/(.+))?', ('GET',), _Handler.tree),
    (f'/api/models/{_REPO}/paths-info/([^/]+)', ('POST',), _Handler.paths_info),
    (f'/api/models/{_REPO}/preupload/([^/]+)', ('POST',), _Handler.preupload),
    (f'/api/models/{_REPO}/commit/([^/]+)', ('POST',), _Handler.commit),
    (f'/{_REPO}\\.git/info/lfs/objects/batch', ('POST',), _Handler.lfs_batch),
    ('/lfs/([0-9a-f]{64})', ('PUT',), _Handler.lfs_upload),
    ('/verify', ('POST',), _Handler.lfs_verify),
    (f'/{_REPO}/resolve/([^/]+)/(.+)', ('HEAD', 'GET'), _Handler.resolve),
    (f'/cdn/{_REPO}/([0-9a-f]+)/(.+)', ('GET',), _Handler.cdn),
)
WRITES = (
    *(_Handler.create_repo, _Handler.preupload, _Handler.commit, _Handler.lfs_batch),
    *(_Handler.create_branch, _Handler.create_collection, _Handler.add_to_collection, _Handler.note_in_collection),
)  # what needs the token
