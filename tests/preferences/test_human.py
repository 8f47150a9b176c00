"""Labels by a person: what the page's server takes and refuses, and the page itself in a real browser."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import socket
import threading
import webbrowser

import numpy as np
import pytest
from painted_segments import painted_store

pytest.importorskip("PIL")

from PIL import Image

from vlp_gym.errors import InstructionError, MissingExtraError
from vlp_gym.preferences import human
from vlp_gym.preferences.human import PAUSE_MS, HumanLabeler, encode_clip
from vlp_gym.preferences.human_server import MAX_BODY
from vlp_gym.preferences.segments import Span

SENTENCE = "press the <b>button</b> & smile"
NAN = float("nan")


@pytest.fixture
def labeler():
    with HumanLabeler(SENTENCE, open_browser=False) as labeler:
        yield labeler


@pytest.fixture(scope="module")
def store():
    return painted_store()


def pairs(store, count):
    """Pair k: episode k against the next one, from their first and second step."""
    episodes = len(store)
    first = store.cut([(k % episodes, 0, 8) for k in range(count)])
    return first, store.cut([((k + 1) % episodes, 1, 9) for k in range(count)])


class Call:
    """A call of the labeler in a thread, and requests to its page."""

    def __init__(self, labeler, first, second):
        self.labeler, self.pair = labeler, 0
        before = labeler._server.round.number
        self._labels = None
        self._thread = threading.Thread(target=self._run, args=(first, second), daemon=True)
        self._thread.start()
        self.round = before + 1
        while labeler._server.round.number == before:
            self._thread.join(0.01)

    def _run(self, first, second):
        self._labels = self.labeler(first, second)

    def labels(self):
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self._labels.tolist()

    def is_over(self):
        return not self._thread.is_alive()

    def request(self, method, path, body=None, *, token=None, **headers):
        """Status, headers and body of the answer."""
        _, _, host, own_token, _ = self.labeler.url.split("/")
        connection = http.client.HTTPConnection(host, timeout=10)
        connection.request(method, f"/{own_token if token is None else token}/{path}", body, headers)
        answer = connection.getresponse()
        try:
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def press(self, label, **changes):
        pressed = {"round": self.round, "pair": self.pair, "label": label, **changes}
        status, _, body = self.request("POST", "label", json.dumps(pressed))
        if status == 200:
            self.pair = json.loads(body)["pair"]
        return status

    def state(self):
        return json.loads(self.request("GET", "state")[2])


@pytest.fixture
def call(labeler, store):
    call = Call(labeler, *pairs(store, 3))
    yield call
    call.press("stop")


class TestLabels:
    def test_each_key_its_label(self, labeler, store):
        call = Call(labeler, *pairs(store, 4))
        assert [call.press(key) for key in ("left", "right", "equal", "skip")] == [200] * 4
        np.testing.assert_array_equal(call.labels(), [1.0, 0.0, 0.5, NAN])

    def test_the_state(self, call):
        shown = {"instruction": SENTENCE, "round": 1, "pair": 0, "pairs": 3, "over": False}
        assert call.state() == shown
        call.press("left")
        assert call.state() == {**shown, "pair": 1}

    def test_undo(self, call):
        assert call.press("undo") == 409
        call.press("left")
        call.press("left")
        assert call.press("undo") == 200
        assert call.state()["pair"] == 1
        for key in ("right", "equal"):
            call.press(key)
        assert call.labels() == [1.0, 0.0, 0.5]

    def test_stop_skips_the_rest(self, call):
        call.press("right")
        assert call.press("stop") == 200
        np.testing.assert_array_equal(call.labels(), [0.0, NAN, NAN])
        assert call.state()["over"]
        assert call.press("left") == 409

    def test_ctrl_c_keeps_what_was_labelled(self, labeler, store, capsys):
        def label_and_interrupt():
            call = Call.__new__(Call)
            call.labeler, call.round, call.pair = labeler, 1, 0
            while call.press("left") != 200:
                pass
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=label_and_interrupt)
        thread.start()
        labels = labeler(*pairs(store, 3))
        thread.join()
        np.testing.assert_array_equal(labels, [1.0, NAN, NAN])
        assert capsys.readouterr() == (f"3 pairs to label at {labeler.url}\n", "stopped: 1 of 3 pairs are labelled\n")

    def test_a_further_round_on_the_same_page(self, labeler, store):
        for number in (1, 2):
            call = Call(labeler, *pairs(store, 1))
            assert call.press("left", round=3 - number) == 409
            assert call.round == number
            call.press("right")
            assert call.labels() == [0.0]

    def test_no_pairs(self, labeler, store):
        nothing = store.cut([(0, 0, 8)])[:0]
        assert labeler(nothing, nothing).shape == (0,)

    def test_the_last_answer_comes_before_the_end(self, store):
        """Whoever closes the server at once cuts no answer short."""
        for _ in range(10):
            with HumanLabeler(SENTENCE, open_browser=False) as labeler:
                call = Call(labeler, *pairs(store, 1))
                assert call.press("left") == 200
                assert call.labels() == [1.0]


class TestRefusals:
    """Each leaves everything as it was."""

    @pytest.fixture(autouse=True)
    def _nothing_changes(self, call):
        call.press("left")
        before = call.state()
        yield
        assert call.state() == before
        assert not call.is_over()

    @pytest.mark.parametrize("pair", [0, 2, -1, 10**9])
    def test_another_pair(self, call, pair):
        assert call.press("left", pair=pair) == 409

    @pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1]", "a@b"])
    @pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "state"), ("POST", "label")])
    def test_another_host(self, call, host, method, path):
        body = json.dumps({"round": 1, "pair": 1, "label": "left"})
        status, _, text = call.request(method, path, body, Host=host)
        assert (status, text) == (403, b"expected the host 127.0.0.1 or localhost")

    def test_no_host(self, call):
        answer = raw(call, f"GET /{call.labeler._server.token}/state HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 403 ")

    @pytest.mark.parametrize("token", ["", "wrong", "é", "x" * 5000, ".."])
    @pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "clip/1/0/left"), ("POST", "label")])
    def test_another_token(self, call, token, method, path):
        if not token.isascii():
            token = token.encode().decode("latin-1")
            answer = raw(call, f"{method} /{token}/{path} HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert answer.startswith(b"HTTP/1.0 403 ")
            return
        body = json.dumps({"round": 1, "pair": 1, "label": "left"})
        status, _, text = call.request(method, path, body, token=token)
        assert (status, text) == (403, b"open the whole address that the terminal shows")

    @pytest.mark.parametrize("path", ["clip/1/3/left", "clip/0/0/left", "clip/1/0/up", "../label.html", "label", "x"])
    def test_what_is_not_there(self, call, path):
        assert call.request("GET", path)[::2] == (404, b"there is nothing here")
        if path != "label":
            assert call.request("POST", path, "{}")[::2] == (404, b"there is nothing here")

    @pytest.mark.parametrize(
        "body",
        [
            "", "left", "[]", "3", "null", "{}", '{"round": 1, "pair": 1}', '{"round": 1, "pair": 1, "label": "up"}',
            '{"round": 1, "pair": 1, "label": []}', '{"round": 1, "pair": true, "label": "left"}',
            '{"round": 1.0, "pair": 1, "label": "left"}', b"\xff\xfe\x00", "[" * MAX_BODY,
        ],
    )  # fmt: skip
    def test_what_is_no_label(self, call, body):
        status, _, text = call.request("POST", "label", body)
        assert status == 400
        expected = b"expected round and pair as numbers and label as left, right, equal, skip, undo or stop"
        assert text == expected

    @pytest.mark.parametrize("size", [MAX_BODY + 1, 60 * MAX_BODY])
    def test_a_body_that_is_too_large(self, call, size):
        label = json.dumps({"round": 1, "pair": 1, "label": "left"})
        assert call.request("POST", "label", label.ljust(size))[::2] == (413, b"expected at most 1024 bytes")

    @pytest.mark.parametrize("length", ["-1", "x", "1e3", "\xb2", "9" * 10])
    def test_a_body_of_no_length(self, call, length):
        head = f"POST /{call.labeler._server.token}/label HTTP/1.0\r\nHost: localhost\r\n"
        assert raw(call, f"{head}Content-Length: {length}\r\n\r\n").startswith(b"HTTP/1.0 411 ")
        assert raw(call, f"{head}Transfer-Encoding: chunked\r\n\r\n").startswith(b"HTTP/1.0 411 ")

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD"])
    def test_another_method(self, call, method):
        assert call.request(method, "label")[0] == 501

    def test_a_browser_that_hangs_up(self, call, capfd):
        with socket.create_connection(("127.0.0.1", call.labeler._server.server_port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close by a reset
            connection.sendall(b"POST")
        assert call.state()["pair"] == 1
        assert capfd.readouterr().err == ""


def raw(call, request):
    """The whole answer to a request that http.client would not send."""
    with socket.create_connection(("127.0.0.1", call.labeler._server.server_port), timeout=10) as connection:
        connection.sendall(request.encode("latin-1"))
        return b"".join(iter(lambda: connection.recv(4096), b""))


class TestThePage:
    def test_its_headers(self, call):
        status, headers, page = call.request("GET", "")
        assert status == 200
        nonce = f"'nonce-{call.labeler._server.nonce}'"
        assert headers["Content-Security-Policy"] == (
            f"default-src 'none'; script-src {nonce}; style-src {nonce}; connect-src 'self'; img-src 'self' data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert b"NONCE" not in page
        assert b"https:" not in page

    def test_localhost_and_another_port_of_a_tunnel(self, call):
        assert call.request("GET", "state", Host="localhost:1234")[0] == 200

    def test_loopback_only(self, labeler):
        host, port = labeler._server.server_address
        assert host == "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)

    def test_every_token_is_another(self, labeler):
        with HumanLabeler(SENTENCE, open_browser=False) as other:
            assert other.url.split("/")[3] != labeler.url.split("/")[3]
            assert len(other.url.split("/")[3]) == 32

    def test_a_port_of_ones_own(self, labeler):
        with pytest.raises(OSError, match="in use"):
            HumanLabeler(SENTENCE, port=labeler._server.server_port)

    @pytest.mark.parametrize(("screen", "wanted", "opened"), [(True, True, 1), (True, False, 0), (False, True, 0)])
    def test_the_browser_is_opened_once(self, store, monkeypatch, screen, wanted, opened):
        addresses = []
        monkeypatch.setattr(webbrowser, "open", addresses.append)
        monkeypatch.setattr(human.sys, "platform", "linux")
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        monkeypatch.setenv("DISPLAY", ":0") if screen else monkeypatch.delenv("DISPLAY", raising=False)
        with HumanLabeler(SENTENCE, open_browser=wanted) as labeler:
            for _ in range(2):
                call = Call(labeler, *pairs(store, 1))
                call.press("left")
                call.labels()
            assert addresses == [labeler.url] * opened


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"port": 65536}, "port: expected 0 to 65535, got 65536"),
            ({"port": -1}, "port: expected 0 to 65535, got -1"),
            ({"fps": 0}, "fps: expected a number greater than 0, got 0"),
            ({"fps": NAN}, "fps: expected a number greater than 0, got nan"),
        ],
    )
    def test_settings(self, options, message):
        with pytest.raises(ValueError) as caught:
            HumanLabeler(SENTENCE, **options)
        assert str(caught.value) == message

    def test_blank_instruction(self):
        with pytest.raises(InstructionError):
            HumanLabeler(" ")

    def test_no_frames(self, labeler):
        store = painted_store(episodes=2, keep_frames=False)
        with pytest.raises(ValueError) as caught:
            labeler(*pairs(store, 1))
        assert str(caught.value) == (
            "Span(episode=0, start=0, stop=8): expected frames to show, found none; keep them where the agent acts: "
            "SegmentStore(frame_size=224)"
        )

    def test_numbers_that_differ(self, labeler, store):
        first, second = pairs(store, 2)
        with pytest.raises(ValueError) as caught:
            labeler(first, second[:1])
        assert str(caught.value) == "expected pairs, got 2 first and 1 second segments"

    def test_without_pillow(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "PIL", None)
        with pytest.raises(MissingExtraError) as caught:
            HumanLabeler(SENTENCE)
        assert str(caught.value) == 'labels by a person need Pillow: pip install "vlp_gym[viz]"'


def decode(clip):
    """Its pictures, and for how many milliseconds each is shown."""
    pictures, durations = [], []
    with Image.open(io.BytesIO(clip)) as image:
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            pictures.append(np.asarray(image.convert("RGB")).astype(int))
            durations.append(image.info["duration"])
        assert image.info["loop"] == 0
    return pictures, durations


class TestClips:
    def test_every_frame_of_the_segment(self, store):
        record = store.cut([(2, 3, 9)]).episodes[0]
        pictures, durations = decode(encode_clip(record.frames, Span(2, 3, 9), 6, fps=20))
        assert durations == [50] * 6 + [50 + PAUSE_MS]
        for picture, step in zip(pictures, range(3, 10), strict=True):
            assert np.abs(picture - record.frames[step]).mean() < 6  # it is compressed

    def test_missing_frames_keep_the_time(self):
        """Frames 4 and 6 of the steps 3 to 8: the first from the start, the last to the end; at 3 steps a second."""
        frames = {step: np.full((8, 8, 3), 20 * step, np.uint8) for step in (0, 4, 6, 9)}
        pictures, durations = decode(encode_clip(frames, Span(0, 3, 8), 5, fps=3))
        assert len(pictures) == 2
        assert durations == [1000, 1000 + PAUSE_MS]  # 6 steps: 3 to 5, and 6 to 8

    def test_two_clips_of_a_pair_take_as_long(self, labeler, store):
        first, second = store.cut([(0, 0, 8)]), store.cut([(1, 0, 3)])
        call = Call(labeler, first, second)
        clips = [decode(call.request("GET", f"clip/1/0/{side}")[2]) for side in ("left", "right")]
        assert sum(clips[0][1]) == sum(clips[1][1]) == 9 * 50 + PAUSE_MS
        call.press("left")
        call.labels()


@pytest.fixture(scope="module")
def chromium():
    """One browser for all tests."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"needs a browser, one of {', '.join(names)}: apt-get install chromium")
    arguments = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ]  # fmt: skip
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments, timeout=100_000)
        yield browser
        browser.close()


class TestInABrowser:
    @pytest.fixture
    def page(self, chromium, labeler):
        """An empty page; complaints of the browser and requests to elsewhere fail the test."""
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(30_000)
        complaints, addresses = [], []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: addresses.append(request.url))
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        yield page
        page.close()
        # Of a server that went away, in the middle of an answer or before one, and of a second window.
        wanted = "ERR_CONNECTION_", "ERR_EMPTY_RESPONSE", "ERR_SOCKET_NOT_CONNECTED", "status of 409"
        assert [text for text in complaints if not any(each in text for each in wanted)] == []
        assert all(address.startswith((labeler.url, "data:")) for address in addresses)

    def at(self, page, title):
        page.wait_for_function("title => document.title === title && (title === 'Done' || !busy)", arg=title)

    def test_keys(self, page, labeler, store):
        call = Call(labeler, *pairs(store, 9))
        page.goto(labeler.url)
        keys = ["ArrowLeft", "ArrowRight", "ArrowUp", "e", "E", " ", "s", "ArrowLeft"]
        for number, key in enumerate(keys, 1):
            self.at(page, f"{number} of 9")
            page.keyboard.press(key)
        for number, key in ((9, "u"), (8, "ArrowRight"), (9, "Backspace"), (8, "ArrowRight"), (9, "x"), (9, "ArrowUp")):
            self.at(page, f"{number} of 9")
            page.keyboard.press(key)
        np.testing.assert_array_equal(call.labels(), [1.0, 0.0, 0.5, 0.5, 0.5, NAN, NAN, 0.0, 0.5])
        self.at(page, "Done")
        assert page.locator("#message strong").inner_text() == "Done, thank you"

    def test_both_clips_play(self, page, labeler, store, tmp_path):
        call = Call(labeler, *pairs(store, 2))
        page.goto(labeler.url)
        self.at(page, "1 of 2")
        assert page.locator("h1").inner_text() == SENTENCE  # as text, not as HTML
        clips = page.locator(".clip img")
        assert clips.count() == 2
        for number in range(2):
            assert clips.nth(number).is_visible()
            assert clips.nth(number).evaluate("image => [image.naturalWidth, image.naturalHeight]") == [48, 48]
            box = clips.nth(number).bounding_box()
            assert box["width"] > 300
            assert box["y"] + box["height"] < 800
            seen = {clips.nth(number).screenshot() for _ in range(5) if page.wait_for_timeout(120) is None}
            assert len(seen) > 1
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
        assert page.locator("#count").inner_text() == "1 of 2"
        picture = page.screenshot(path=tmp_path / "page.png")
        assert len(picture) > 5000
        page.keyboard.press("ArrowLeft")
        self.at(page, "2 of 2")
        page.keyboard.press("ArrowLeft")
        assert call.labels() == [1.0, 1.0]

    def test_buttons_and_the_focus(self, page, labeler, store):
        """A mouse, the tab key with space, and a space after the mouse, which is a skip and not the button again."""
        call = Call(labeler, *pairs(store, 6))
        page.goto(labeler.url)
        self.at(page, "1 of 6")
        page.locator(".clip").nth(1).click()
        self.at(page, "2 of 6")
        page.keyboard.press("Space")
        self.at(page, "3 of 6")
        page.get_by_role("button", name="Equal").click()
        self.at(page, "4 of 6")
        page.get_by_role("button", name="Undo").click()
        self.at(page, "3 of 6")
        page.locator(".choices button").nth(0).focus()
        page.keyboard.press("Space")
        self.at(page, "4 of 6")
        page.keyboard.press("Enter")
        self.at(page, "5 of 6")
        page.get_by_role("button", name="Skip").click()
        self.at(page, "6 of 6")
        page.locator(".clip").nth(0).click()
        np.testing.assert_array_equal(call.labels(), [0.0, NAN, 1.0, 1.0, NAN, 1.0])

    def test_a_key_held_down_labels_once(self, page, labeler, store):
        call = Call(labeler, *pairs(store, 3))
        page.goto(labeler.url)
        self.at(page, "1 of 3")
        for number in range(5):
            page.keyboard.down("ArrowLeft")
            if number == 0:
                self.at(page, "2 of 3")
        page.keyboard.up("ArrowLeft")
        assert call.state()["pair"] == 1
        call.pair = 1
        call.press("stop")
        call.labels()

    def test_stop_asks_first(self, page, labeler, store):
        call = Call(labeler, *pairs(store, 3))
        page.goto(labeler.url)
        self.at(page, "1 of 3")
        page.keyboard.press("ArrowRight")
        self.at(page, "2 of 3")
        asked = []
        page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
        page.keyboard.press("q")
        assert call.state() == {"instruction": SENTENCE, "round": 1, "pair": 1, "pairs": 3, "over": False}
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Stop").click()
        np.testing.assert_array_equal(call.labels(), [0.0, NAN, NAN])
        self.at(page, "Done")
        assert asked == ["Stop here? The last 2 pairs are skipped."]
        assert page.locator("#message strong").inner_text() == "Stopped"

    def test_more_pairs_come_to_the_same_page_until_it_ends(self, page, labeler, store):
        page.goto(labeler.url)
        page.get_by_text("No pairs yet").wait_for()
        for _ in range(2):
            call = Call(labeler, *pairs(store, 1))
            self.at(page, "1 of 1")
            page.keyboard.press("ArrowRight")
            assert call.labels() == [0.0]
            self.at(page, "Done")
        labeler._server.server_close()
        page.get_by_text("1 of 1 pairs are done. This page can be closed.").wait_for()

    def test_two_windows(self, page, labeler, store):
        """One that is late shows the pair of the moment and labels nothing."""
        call = Call(labeler, *pairs(store, 3))
        page.goto(labeler.url)
        self.at(page, "1 of 3")
        call.press("left")
        page.keyboard.press("ArrowRight")
        self.at(page, "2 of 3")
        page.keyboard.press("ArrowRight")
        self.at(page, "3 of 3")
        page.keyboard.press("ArrowUp")
        assert call.labels() == [1.0, 0.0, 0.5]


def test_a_page_that_was_taken_down_asks_nobody(store):
    labeler = HumanLabeler("press the button", open_browser=False)
    labeler.close()
    with pytest.raises(ValueError, match=r"^the page was taken down by close\(\); make another HumanLabeler$"):
        labeler(*pairs(store, 1))
