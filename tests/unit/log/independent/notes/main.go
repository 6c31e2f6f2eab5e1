// SPDX-License-Identifier: Apache-2.0

// Signed notes as golang.org/x/mod/sumdb/note has them: a list of requests in JSON on stdin, a list of answers on stdout.
// A request with a Name asks for a new key and for Text signed with it; one without asks for Note to be opened with Vkeys.
package main

import (
	"crypto/rand"
	"encoding/json"
	"log"
	"os"

	"golang.org/x/mod/sumdb/note"
)

type request struct {
	Name  string
	Text  string
	Note  []byte
	Vkeys []string
}

type answer struct {
	Vkey    string
	Note    []byte
	Text    string
	Signers []string // of the signatures that were verified
	Others  []string
	Error   string
}

func sign(asked request) (answer, error) {
	skey, vkey, err := note.GenerateKey(rand.Reader, asked.Name)
	if err != nil {
		return answer{}, err
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		return answer{}, err
	}
	signed, err := note.Sign(&note.Note{Text: asked.Text}, signer)
	return answer{Vkey: vkey, Note: signed}, err
}

func open(asked request) (answer, error) {
	var known []note.Verifier
	for _, vkey := range asked.Vkeys {
		verifier, err := note.NewVerifier(vkey)
		if err != nil {
			return answer{}, err
		}
		known = append(known, verifier)
	}
	opened, err := note.Open(asked.Note, note.VerifierList(known...))
	if err != nil {
		return answer{}, err
	}
	given := answer{Text: opened.Text}
	for _, signature := range opened.Sigs {
		given.Signers = append(given.Signers, signature.Name)
	}
	for _, signature := range opened.UnverifiedSigs {
		given.Others = append(given.Others, signature.Name)
	}
	return given, nil
}

func main() {
	var all []request
	if err := json.NewDecoder(os.Stdin).Decode(&all); err != nil {
		log.Fatal(err)
	}
	given := make([]answer, len(all))
	for i, asked := range all {
		do := open
		if asked.Name != "" {
			do = sign
		}
		found, err := do(asked)
		if err != nil {
			found.Error = err.Error()
		}
		given[i] = found
	}
	if err := json.NewEncoder(os.Stdout).Encode(given); err != nil {
		log.Fatal(err)
	}
}
